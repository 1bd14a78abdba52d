"""The jobs of a call. Pure."""

from dataclasses import dataclass, field

from schemas.calls import Call, CallProblem, Speaker
from schemas.errors import InvalidJob
from schemas.job import Job
from schemas.jobs import parse_job


@dataclass(slots=True)
class PlannedCall:
    """A call and its jobs; `turn_indexes` names the turn of each job, None for the whole call."""

    call: Call
    jobs: list[Job] = field(default_factory=list)
    turn_indexes: list[int | None] = field(default_factory=list)
    problems: list[CallProblem] = field(default_factory=list)

    def leave_out(self, index: int, error: InvalidJob) -> None:
        """Make a problem of a job that is refused."""
        del self.jobs[index]
        turn_index = self.turn_indexes.pop(index)
        self.problems.append(CallProblem(code=error.code, message=error.message, turn_index=turn_index))


def plan(call: Call, model: str | None = None, *, cache: bool = True) -> PlannedCall:
    """Return the jobs of a call: its intent, its sentiment, then the sentiment of each customer turn."""
    planned = PlannedCall(call)
    turns = [{"speaker": turn.speaker, "text": turn.text} for turn in call.turns]
    common = {"language": call.language, "model": model, "tags": {"call_id": call.call_id}, "cache": cache}
    wanted: list[tuple[int | None, dict[str, object]]] = [
        (None, {"kind": "intent", "turns": turns, **common}),
        (None, {"kind": "sentiment", "turns": turns, **common}),
    ]
    for index, turn in enumerate(call.turns):
        if turn.speaker is Speaker.CUSTOMER:
            wanted.append((index, {"kind": "sentiment", "text": turn.text, **common}))
    for turn_index, job in wanted:
        try:
            planned.jobs.append(parse_job(job))
            planned.turn_indexes.append(turn_index)
        except InvalidJob as error:
            planned.problems.append(CallProblem(code=error.code, message=error.message, turn_index=turn_index))
    return planned
