"""`yyc3 up` when its parts die: everything is started again, and said."""

from pathlib import Path

from tests.support.sandbox import wait_for
from tests.support.up import SIMULATED, Up


def test_servers_and_workers_that_die_are_started_again_as_often_as_it_takes(tmp_path: Path) -> None:
    submit = ("submit", "sentiment", "--text", "谢谢", "--wait", "--timeout", "60")
    with Up(tmp_path / "home", *SIMULATED) as up:
        up.yyc3(*submit)
        for server, part in (("valkey", r"valkey-server"), ("postgres", r"bin/postgres -D")):
            up.kill(part)
            wait_for(lambda server=server: f"{server} runs again" in up.said, f"{server} to run again")  # type: ignore[misc]
            assert "positive" in up.yyc3(*submit)
        for times in (1, 2, 3):
            up.kill(r"workers\.main interactive")
            wait_for(lambda times=times: up.said.count("worker-interactive exited") == times, "the loss of the worker")  # type: ignore[misc]
        assert "stays down" not in up.said
        assert "positive" in up.yyc3(*submit)
