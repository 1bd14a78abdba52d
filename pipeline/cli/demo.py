"""`yyc3 demo`: run the whole pipeline on this machine, on calls written for this project or your own."""

import os
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.calls import Summary, counted, run_analysis
from pipeline.cli.console import command, print_json, say, table, tell
from pipeline.files import OutputFile
from pipeline.settings import load_settings
from pipeline.stack import Stack
from pipeline.wiring import Wiring
from schemas.calls import Call, CallReport

DEMO_CALLS = Path(__file__).with_name("demo_calls.jsonl")
_SHOWN_CALLS = 12


@command
def demo(
    files: Annotated[list[Path] | None, typer.Argument(help="Your own calls, JSON Lines.")] = None,
    to: Annotated[Path | None, typer.Option("--out", help="File for the reports, one a line.")] = None,
    speed: Annotated[float, typer.Option(help="Speed of the simulators; 1 is life-like.", min=0.01)] = 1.0,
    keep: Annotated[bool, typer.Option("--keep", help="Keep running afterwards, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Start everything, with simulators for models without an endpoint, and analyse calls.

    If a `yyc3 up` is running it uses that one.
    """
    settings = load_settings()

    def on_step(text: str) -> None:
        tell(text, style="dim")

    wired = Wiring(settings)
    stack = None if wired.running else Stack(settings, simulate=True, speed=speed, on_step=on_step)
    calls = files or [DEMO_CALLS]
    with OutputFile(to, inputs=calls) if to else nullcontext() as target, stack or nullcontext():
        wired = Wiring(settings)
        # Without the cache: the second demo shows what the pipeline does, not what it remembers.
        summary = run_analysis(wired, calls, target, model=None, quiet=as_json, keep=_SHOWN_CALLS, cache=False)
        flower_url = wired.running.flower_url if wired.running else None
        if as_json:
            print_json(summary.as_json() | {"flower_url": flower_url})
        else:
            _show(summary)
        if keep and stack is not None:
            tell(f"Flower shows every chunk: {flower_url}   Ctrl-C stops everything")
            stack.supervisor.next_event()
    raise typer.Exit(summary.exit_code)


def _show(summary: Summary) -> None:
    if summary.first_call is not None and summary.reports:
        _show_call(summary.first_call, summary.reports[0])
    table(
        "calls",
        ["call", "intent", "confidence", "sentiment", "score", "customer turns"],
        [_line(report) for report in summary.reports],
    )
    done = summary.progress
    if done.calls > len(summary.reports):
        say(f"… and {done.calls - len(summary.reports)} more calls; --out FILE keeps them all")
    for title, counts in (("intents", summary.intents), ("sentiments", summary.sentiments)):
        say(f"{title}: {', '.join(f'{label} {count}' for label, count in counts.most_common())}")
    say(f"{counted(summary)}, {done.jobs / summary.seconds:.0f} jobs/s")
    if any(report.simulated for report in summary.reports):
        say("simulated engines answered, from word lists: they show the pipeline, not insight", style="yellow")
    _show_next_steps()


def _show_call(call: Call, report: CallReport) -> None:
    """Print one call with its words, so that a reader can judge the labels."""
    found = {turn.index: turn.sentiment.label for turn in report.turns}
    rows = [[turn.speaker, turn.text, found.get(index, "")] for index, turn in enumerate(call.turns)]
    table(f"one call in full: {call.call_id}", ["speaker", "words", "sentiment"], rows)
    intent = report.intents[0].label if report.intents else "(failed)"
    mood = report.sentiment.label if report.sentiment else "(failed)"
    say(f"intent of the whole call: {intent}; its sentiment: {mood}")


def _show_next_steps() -> None:
    yyc3 = "yyc3" if shutil.which("yyc3") else os.path.relpath(sys.argv[0])
    say("what next:")
    say(f"  your own calls     {yyc3} demo calls.jsonl --out reports.jsonl")
    say(f"  keep it running    {yyc3} up --simulate; elsewhere: {yyc3} submit chat --text '你好' --stream")
    say(f"  your own vLLM      AI_BASE_URL=http://127.0.0.1:10086 AI_MODEL=chatglm3-6b {yyc3} up")


def _line(report: CallReport) -> list[object]:
    intent = report.intents[0] if report.intents else None
    sure = f"{intent.confidence:.0%}" if intent and intent.confidence is not None else ""
    mood = report.sentiment
    turns = " ".join({"positive": "+", "neutral": "·", "negative": "−"}[turn.sentiment.label] for turn in report.turns)
    return [
        report.call_id,
        intent.label if intent else "(failed)",
        sure,
        mood.label if mood else "(failed)",
        f"{round(mood.score, 2) + 0.0:+.2f}" if mood else "",
        turns,
    ]
