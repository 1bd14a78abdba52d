"""Faults on demand: which request goes wrong, and how."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any
from zlib import crc32

from simulator.errors import SimulatorError

KINDS = {
    "slow": "answers after SECONDS more (default 2)",
    "hang": "never answers, or closes the connection after SECONDS",
    "cut": "closes the connection in the middle of the answer",
    "garbage": "200 with a body that is not JSON",
    "nonsense": "a valid response whose text breaks the constraint",
    "abort": '200 with part of the text and finish_reason "abort"',
    "empty": "200 with empty content",
    "crash": "500 of a dead engine; a stream gets an error event in the middle",
    "badrow": "rows chosen by their text, always the same ones, fail the whole request with 400",
}
_DEFAULT_SLOW_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to go wrong.

    Attributes:
        kind: an HTTP status from 400 to 599 as text, or one of `KINDS`.
        probability: 0 to 1, for each request; for `badrow` for each row.
        seconds: how long, for `slow` and `hang`.

    """

    kind: str
    probability: float = 1.0
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS and not (self.kind.isdigit() and 400 <= int(self.kind) <= 599):
            raise SimulatorError(
                f"There is no fault {self.kind!r}; use an HTTP status from 400 to 599 or one of {', '.join(KINDS)}."
            )
        if not 0.0 <= self.probability <= 1.0:
            raise SimulatorError(f"The probability of fault {self.kind} must be from 0 to 1, not {self.probability}.")
        if self.seconds is not None and not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise SimulatorError(f"The seconds of fault {self.kind} must be 0 or more, not {self.seconds}.")

    @property
    def status(self) -> int | None:
        """The HTTP status it answers with; None for the other kinds."""
        return int(self.kind) if self.kind.isdigit() else None

    @property
    def delay_seconds(self) -> float:
        """How long `slow` waits."""
        return _DEFAULT_SLOW_SECONDS if self.seconds is None else self.seconds

    def as_json(self) -> dict[str, Any]:
        """As the admin route shows it."""
        return {"kind": self.kind, "probability": self.probability, "seconds": self.seconds}


def parse_fault(text: str) -> Fault:
    """Read `KIND:PROBABILITY[:SECONDS]`, the value of `--fail`; KIND alone means always.

    Raises:
        SimulatorError: with a sentence that repeats the value.

    """
    kind, *rest = text.split(":")
    if len(rest) > 2:
        raise SimulatorError(f"--fail wants KIND:PROBABILITY[:SECONDS], not {text!r}.")
    try:
        numbers = [float(part) for part in rest]
    except ValueError as problem:
        raise SimulatorError(
            f"--fail wants numbers after the kind, as in 503:0.1 or slow:0.2:5, not {text!r}."
        ) from problem
    return Fault(kind, numbers[0] if numbers else 1.0, numbers[1] if len(numbers) > 1 else None)


def faults_from_json(document: Any) -> tuple[Fault, ...]:
    """Read `{"faults": [{"kind": "503", "probability": 0.1, "seconds": null}]}` of the admin route.

    Raises:
        SimulatorError: with the reason.

    """
    entries = document.get("faults") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise SimulatorError('The faults must be {"faults": [{"kind": ..., "probability": ..., "seconds": ...}]}.')
    faults = []
    for entry in entries:
        if not isinstance(entry, dict) or "kind" not in entry:
            raise SimulatorError(f"A fault needs a kind, and this one has none: {entry!r}.")
        probability, seconds = entry.get("probability", 1.0), entry.get("seconds")
        if not isinstance(probability, int | float) or not (seconds is None or isinstance(seconds, int | float)):
            raise SimulatorError(f"Probability and seconds of a fault must be numbers: {entry!r}.")
        faults.append(Fault(str(entry["kind"]), float(probability), None if seconds is None else float(seconds)))
    return tuple(faults)


class FaultPlan:
    """Decides for every request whether it goes wrong; the same seed and order of requests give the same decisions."""

    def __init__(self, faults: Sequence[Fault], seed: int) -> None:
        self._seed = seed
        self._random = Random(seed)
        self.replace(faults)

    def replace(self, faults: Sequence[Fault]) -> None:
        """Use these faults from now on."""
        self.faults = tuple(faults)
        self._by_request = tuple(fault for fault in self.faults if fault.kind != "badrow")
        self._by_row = tuple(fault for fault in self.faults if fault.kind == "badrow")

    def draw(self) -> Fault | None:
        """The fault of the next request; the first that strikes in the order given."""
        for fault in self._by_request:
            if self._random.random() < fault.probability:
                return fault
        return None

    @property
    def picks_rows(self) -> bool:
        """Some rows are to fail."""
        return bool(self._by_row)

    def strikes_row(self, text: str) -> bool:
        """Whether a row with this text fails; the same text always gives the same answer."""
        mark = crc32(text.encode("utf-8", "surrogatepass"), self._seed & 0xFFFFFFFF) / 0x100000000
        return any(mark < fault.probability for fault in self._by_row)
