"""Fault injection: which request fails, and how."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any
from zlib import crc32

from simulator.errors import SimulatorError

FAULT_KINDS = {
    "slow": "delays the answer by SECONDS (default 2)",
    "hang": "sends no answer, or closes the connection after SECONDS",
    "cut": "closes the connection in the middle of the answer",
    "garbage": "sends 200 with a body that is not JSON",
    "nonsense": "sends a valid response whose text violates the constraint",
    "abort": 'sends 200 with part of the text and finish_reason "abort"',
    "empty": "sends 200 with empty content",
    "crash": "sends the 500 of a dead engine, or an error event in the middle of a stream",
    "badrow": "rejects a request with 400 when it contains a selected row (selected by its text, always the same rows)",
}
_DEFAULT_SLOW_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of failure, with its probability.

    Attributes:
        kind: an HTTP status from 400 to 599 as text, or one of `FAULT_KINDS`.
        probability: 0 to 1, for each request; for `badrow`, for each row.
        seconds: how long `slow` and `hang` last.

    """

    kind: str
    probability: float = 1.0
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in FAULT_KINDS and not (self.kind.isdigit() and 400 <= int(self.kind) <= 599):
            raise SimulatorError(
                f"There is no fault {self.kind!r}; use an HTTP status from 400 to 599 or one of "
                f"{', '.join(FAULT_KINDS)}."
            )
        if not 0.0 <= self.probability <= 1.0:
            raise SimulatorError(f"The probability of fault {self.kind} must be from 0 to 1, not {self.probability}.")
        if self.seconds is not None and not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise SimulatorError(f"The seconds of fault {self.kind} must be 0 or more, not {self.seconds}.")

    @property
    def status(self) -> int | None:
        """HTTP status of the error response; None for the kinds in `FAULT_KINDS`."""
        return int(self.kind) if self.kind.isdigit() else None

    @property
    def delay_seconds(self) -> float:
        """Delay of `slow`, in seconds."""
        return _DEFAULT_SLOW_SECONDS if self.seconds is None else self.seconds

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object that the admin route shows."""
        return {"kind": self.kind, "probability": self.probability, "seconds": self.seconds}


def parse_fault(text: str) -> Fault:
    """Parse `KIND:PROBABILITY[:SECONDS]`, the value of `--fail`; KIND alone has probability 1.

    Raises:
        SimulatorError: the value is invalid; the sentence repeats it.

    """
    kind, *rest = text.split(":")
    if len(rest) > 2:
        raise SimulatorError(f"--fail must have the form KIND:PROBABILITY[:SECONDS], not {text!r}.")
    try:
        numbers = [float(part) for part in rest]
    except ValueError as problem:
        raise SimulatorError(
            f"--fail must have numbers after the kind, as in 503:0.1 or slow:0.2:5, not {text!r}."
        ) from problem
    return Fault(kind, numbers[0] if numbers else 1.0, numbers[1] if len(numbers) > 1 else None)


def parse_faults(document: Any) -> tuple[Fault, ...]:
    """Parse the faults that the admin route receives.

    The form is `{"faults": [{"kind": "503", "probability": 0.1, "seconds": null}]}`.

    Raises:
        SimulatorError: the document is invalid; the sentence gives the reason.

    """
    entries = document.get("faults") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise SimulatorError(
            'The body must have the form {"faults": [{"kind": "503", "probability": 0.1, "seconds": null}]}.'
        )
    faults = []
    for entry in entries:
        if not isinstance(entry, dict) or "kind" not in entry:
            raise SimulatorError(f"A fault must have a kind; this one has none: {entry!r}.")
        probability, seconds = entry.get("probability", 1.0), entry.get("seconds")
        if not isinstance(probability, int | float) or not (seconds is None or isinstance(seconds, int | float)):
            raise SimulatorError(f"The probability and the seconds of a fault must be numbers: {entry!r}.")
        faults.append(Fault(str(entry["kind"]), float(probability), None if seconds is None else float(seconds)))
    return tuple(faults)


class FaultPlan:
    """Decides for each request whether it fails.

    The same seed and the same order of requests give the same decisions.
    """

    def __init__(self, faults: Sequence[Fault], seed: int) -> None:
        self._seed = seed
        self._random = Random(seed)
        self.replace(faults)

    def replace(self, faults: Sequence[Fault]) -> None:
        """Use these faults from now on."""
        self.faults = tuple(faults)
        self._request_faults = tuple(fault for fault in self.faults if fault.kind != "badrow")
        self._row_faults = tuple(fault for fault in self.faults if fault.kind == "badrow")

    def draw(self) -> Fault | None:
        """Draw the fault of the next request: the first one, in the given order, that occurs."""
        for fault in self._request_faults:
            if self._random.random() < fault.probability:
                return fault
        return None

    @property
    def has_row_faults(self) -> bool:
        """Whether some rows fail."""
        return bool(self._row_faults)

    def fails_row(self, text: str) -> bool:
        """Return whether a row with this text fails; the same text always gives the same result."""
        fraction = crc32(text.encode("utf-8", "surrogatepass"), self._seed & 0xFFFFFFFF) / 0x100000000
        return any(fraction < fault.probability for fault in self._row_faults)
