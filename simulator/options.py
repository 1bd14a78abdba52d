"""Everything a person can set."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from simulator.engine import EngineLimits
from simulator.errors import SimulatorError
from simulator.faults import Fault


@dataclass(frozen=True, slots=True)
class SimulatorOptions:
    """How a simulator behaves; the defaults are one L40 with a 6B model in 16 bit.

    Attributes:
        model: the served name.
        host: address to listen on.
        port: 0 takes a free one.
        speed: divides every duration; 1 is life-like.
        seed: decides answers, noise and faults.
        faults: what goes wrong, see `parse_fault`.
        answers: file of scripted answers, see `read_script`.
        vllm_version: shown by /version; below 0.12 `guided_*` is obeyed instead of `structured_outputs`, and there is
            no batch route.
        max_model_len: context in tokens.
        max_num_seqs: seats.
        max_prefill_tokens: prompt tokens read in one step.
        max_num_queued_reqs: more unfinished rows than this get 503; None is vLLM's default, no limit.
        images: whether the model takes images; a text model refuses them with 400.

    Raises:
        SimulatorError: a value makes no sense.

    """

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    speed: float = 1.0
    seed: int = 0
    faults: tuple[Fault, ...] = ()
    answers: Path | None = None
    vllm_version: str = "0.32.0"
    max_model_len: int = 8192
    max_num_seqs: int = 256
    max_prefill_tokens: int = 2048
    max_num_queued_reqs: int | None = None
    images: bool = True

    def __post_init__(self) -> None:
        if not self.model:
            raise SimulatorError("The simulator needs the name of a model to serve; give one with --model.")
        if not (math.isfinite(self.speed) and self.speed > 0):
            raise SimulatorError(f"--speed must be a number above 0, not {self.speed}.")
        if not 0 <= self.port <= 65535:
            raise SimulatorError(f"--port must be from 0 (any free one) to 65535, not {self.port}.")
        if not re.match(r"\d+\.\d+", self.vllm_version):
            raise SimulatorError(f"--vllm-version must look like 0.32.0, not {self.vllm_version!r}.")
        for name in ("max_model_len", "max_num_seqs", "max_prefill_tokens", "max_num_queued_reqs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SimulatorError(f"--{name.replace('_', '-')} must be at least 1, not {value}.")

    @property
    def legacy(self) -> bool:
        """The simulated version is older than 0.12."""
        major, minor = re.findall(r"\d+", self.vllm_version)[:2]
        return (int(major), int(minor)) < (0, 12)

    @property
    def limits(self) -> EngineLimits:
        """The engine of these options."""
        return EngineLimits(
            seats=self.max_num_seqs,
            prefill_tokens_per_step=self.max_prefill_tokens,
            speed=self.speed,
            max_unfinished=self.max_num_queued_reqs,
        )

    @property
    def fingerprint(self) -> str:
        """The `system_fingerprint` of every answer; it says what answered."""
        return f"simulator-{self.vllm_version}-{self.seed:08x}"
