"""Everything that a person can configure."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from simulator.engine.core import EngineLimits
from simulator.errors import SimulatorError
from simulator.faults import Fault


@dataclass(frozen=True, slots=True)
class SimulatorOptions:
    """Configuration of a simulator; the defaults are one L40 with a 6B model in 16 bit.

    Attributes:
        model: the served model name.
        host: address to listen on.
        port: TCP port; 0 selects a free one.
        descriptor: a socket that listens already, in place of host and port.
        speed: divides every duration; 1 is real time.
        seed: determines answers, noise and faults.
        faults: faults to inject, see `parse_fault`.
        answers: file of scripted answers, see `read_script`.
        vllm_version: shown by /version; below 0.12 the simulator follows `guided_*` instead of
            `structured_outputs`, and it has no batch route.
        max_model_len: context length in tokens.
        max_num_seqs: sequences that run at the same time.
        max_prefill_tokens: prompt tokens that one step processes.
        max_num_queued_reqs: a request that would exceed this number of unfinished rows gets 503;
            None is vLLM's default, no limit.
        images: whether the model accepts images; a text model rejects them with 400.

    Raises:
        SimulatorError: a value is invalid.

    """

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    descriptor: int | None = None
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
            raise SimulatorError("The name of the served model is empty; set it with --model.")
        if not (math.isfinite(self.speed) and self.speed > 0):
            raise SimulatorError(f"--speed must be a number above 0, not {self.speed}.")
        if not 0 <= self.port <= 65535:
            raise SimulatorError(f"--port must be from 0 (any free port) to 65535, not {self.port}.")
        if not re.match(r"\d+\.\d+", self.vllm_version):
            raise SimulatorError(f"--vllm-version must have the form 0.32.0, not {self.vllm_version!r}.")
        for name in ("max_model_len", "max_num_seqs", "max_prefill_tokens", "max_num_queued_reqs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SimulatorError(f"--{name.replace('_', '-')} must be at least 1, not {value}.")

    @property
    def legacy(self) -> bool:
        """Whether the simulated version is older than 0.12."""
        major, minor = re.findall(r"\d+", self.vllm_version)[:2]
        return (int(major), int(minor)) < (0, 12)

    @property
    def limits(self) -> EngineLimits:
        """Limits of the engine that these options describe."""
        return EngineLimits(
            max_num_seqs=self.max_num_seqs,
            prefill_tokens_per_step=self.max_prefill_tokens,
            speed=self.speed,
            max_unfinished=self.max_num_queued_reqs,
        )

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint` of every answer; it marks the answer as simulated."""
        return f"simulator-{self.vllm_version}-{self.seed:08x}"
