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
from simulator.faults import FAULT_KINDS, parse_fault
from simulator.http.server import serve
from simulator.options import SimulatorOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Run the simulator until SIGTERM or SIGINT.

    Returns:
        The exit status: 0 after a signal; 2 when the simulator cannot start, with one sentence on
        stderr.

    """
    try:
        options = _parse_options(argv)
        run(options)
    except SimulatorError as problem:
        sys.stderr.write(f"{problem}\n")
        return 2
    return 0


def run(options: SimulatorOptions) -> None:
    """Serve until SIGTERM or SIGINT, with uvloop where it is installed; print the URL when ready.

    Raises:
        SimulatorError: the simulator cannot start.

    """
    # An answer is thousands of small objects without cycles; with the default thresholds the
    # collector takes a third of the time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve_until_signal(options))
    else:
        uvloop.run(_serve_until_signal(options))


async def _serve_until_signal(options: SimulatorOptions) -> None:
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


def _parse_options(argv: Sequence[str] | None) -> SimulatorOptions:
    arguments = _build_parser().parse_args(argv)
    return SimulatorOptions(
        model=arguments.model,
        host=arguments.host,
        port=arguments.port,
        descriptor=arguments.fd,
        speed=arguments.speed,
        seed=arguments.seed,
        faults=tuple(parse_fault(text) for text in arguments.fail),
        answers=arguments.answers,
        vllm_version=arguments.vllm_version,
        max_model_len=arguments.max_model_len,
        max_num_seqs=arguments.max_num_seqs,
        max_num_queued_reqs=arguments.max_num_queued_reqs,
        images=not arguments.no_images,
    )


def _build_parser() -> argparse.ArgumentParser:
    kinds = "; ".join(f"{kind}: {meaning}" for kind, meaning in FAULT_KINDS.items())
    parser = argparse.ArgumentParser(
        prog="simulator", description="Simulates a vLLM server, without a GPU and without a model."
    )
    parser.add_argument("--model", required=True, help="name of the simulated model")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=int, default=8000, help="port to listen on; 0 selects a free one (default: 8000)"
    )
    parser.add_argument(
        "--fd", type=int, help="descriptor of a socket that listens already, in place of --host and --port"
    )
    parser.add_argument("--speed", type=float, default=1.0, help="divides every duration (default: 1, real time)")
    parser.add_argument("--seed", type=int, default=0, help="determines answers, noise and faults (default: 0)")
    parser.add_argument(
        "--fail",
        action="append",
        default=[],
        metavar="KIND:PROBABILITY[:SECONDS]",
        help=f"injects a fault; may be repeated; KIND is an HTTP status from 400 to 599, or {kinds}".replace("%", "%%"),
    )
    parser.add_argument("--answers", type=Path, metavar="FILE", help="scripted answers, one JSON object per line")
    parser.add_argument(
        "--vllm-version", default="0.32.0", help="simulated version; below 0.12 it follows guided_* (default: 0.32.0)"
    )
    parser.add_argument("--max-model-len", type=int, default=8192, help="context length in tokens (default: 8192)")
    parser.add_argument(
        "--max-num-seqs", type=int, default=256, help="sequences that run at the same time (default: 256)"
    )
    parser.add_argument(
        "--max-num-queued-reqs", type=int, help="rejects requests with 503 above this number of unfinished rows"
    )
    parser.add_argument("--no-images", action="store_true", help="simulates a text model: images are rejected with 400")
    return parser
