"""The command line of the simulator."""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from simulator.errors import SimulatorError
from simulator.faults import KINDS, parse_fault
from simulator.options import SimulatorOptions
from simulator.server import serve


def main(argv: Sequence[str] | None = None) -> int:
    """Run the simulator until SIGTERM or SIGINT.

    Returns:
        The exit status: 0 after a signal, 2 when it could not start, with one sentence on stderr.

    """
    try:
        options = _options(argv)
        run(options)
    except SimulatorError as problem:
        sys.stderr.write(f"{problem}\n")
        return 2
    return 0


def run(options: SimulatorOptions) -> None:
    """Serve until SIGTERM or SIGINT, with uvloop where it is installed; prints the URL when ready.

    Raises:
        SimulatorError: it could not start.

    """
    # An answer is thousands of small objects without cycles; the default thresholds spend a third of the time on them.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    try:
        import uvloop
    except ImportError:
        asyncio.run(_until_signalled(options))
    else:
        uvloop.run(_until_signalled(options))


async def _until_signalled(options: SimulatorOptions) -> None:
    serving = asyncio.create_task(serve(options, lambda url: _announce(options, url)))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    await asyncio.wait([serving])
    if not serving.cancelled():
        serving.result()


def _announce(options: SimulatorOptions, url: str) -> None:
    sys.stdout.write(
        f"Simulated {options.model} listens on {url}; its answers come from word lists, not from a model.\n"
    )
    sys.stdout.flush()


def _options(argv: Sequence[str] | None) -> SimulatorOptions:
    given = _parser().parse_args(argv)
    return SimulatorOptions(
        model=given.model,
        host=given.host,
        port=given.port,
        speed=given.speed,
        seed=given.seed,
        faults=tuple(parse_fault(text) for text in given.fail),
        answers=given.answers,
        vllm_version=given.vllm_version,
        max_model_len=given.max_model_len,
        max_num_seqs=given.max_num_seqs,
        max_num_queued_reqs=given.max_num_queued_reqs,
        images=not given.no_images,
    )


def _parser() -> argparse.ArgumentParser:
    kinds = "; ".join(f"{kind}: {meaning}" for kind, meaning in KINDS.items())
    parser = argparse.ArgumentParser(prog="simulator", description="Stands in for a vLLM server; no GPU, no model.")
    parser.add_argument("--model", required=True, help="name of the model it pretends to serve")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--speed", type=float, default=1.0, help="divides every duration (default: life-like)")
    parser.add_argument("--seed", type=int, default=0, help="decides answers, noise and faults")
    parser.add_argument(
        "--fail",
        action="append",
        default=[],
        metavar="KIND:PROBABILITY[:SECONDS]",
        help=f"may be given again; KIND is a status from 400 to 599, or {kinds}".replace("%", "%%"),
    )
    parser.add_argument("--answers", type=Path, metavar="FILE", help="scripted answers, one JSON object a line")
    parser.add_argument("--vllm-version", default="0.32.0", help="below 0.12 it obeys guided_* fields")
    parser.add_argument("--max-model-len", type=int, default=8192, help="context in tokens")
    parser.add_argument("--max-num-seqs", type=int, default=256, help="seats")
    parser.add_argument("--max-num-queued-reqs", type=int, help="more unfinished rows than this get 503")
    parser.add_argument("--no-images", action="store_true", help="a text model: pictures are refused with 400")
    return parser
