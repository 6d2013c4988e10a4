"""Answers meant to break a grader, and verifier processes that die or exceed their time limit."""

import os
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from ghosttrace.bench import verifier
from ghosttrace.bench.benchmark import Grade
from ghosttrace.bench.grading import MAX_ANSWER_CHARACTERS, choice, integer, mathematics

DATA = Path(os.environ.get("GHOSTTRACE_DATA", Path(__file__).parents[2] / "shared")) / "bench"

HOSTILE = [
    r"\boxed{" * 15_000,
    r"\boxed{" * 7_000 + "33" + "}" * 7_000,
    "{" * 100_000,
    "\\" * 100_000,
    "$" * 100_000,
    "final answer" + " " * 100_000,
    "Final Answer: " * 7_000,
    "Final Answer: " + r"\[" * 50_000,
    "answer is " * 10_000,
    "answer:" + " option" * 15_000,
    "**" * 50_000,
    "A " * 50_000,
    r"\boxed{" + "9" * 100_000 + "}",
    r"\boxed{" + "9" * MAX_ANSWER_CHARACTERS + "}",
    r"\boxed{" + "{" * 400 + "33" + "}" * 400 + "}",
    r"\boxed{" + "1+" * 400 + "1}",
    r"\boxed{" + r"\text{" * 100 + "}" * 100 + "}",
    r"\boxed{" + "\ud800" + "\x00" + "}",
    r"\boxed{2^{2^{2^{2^{10}}}}}",
    r"\boxed{10^{10^{10}}}",
    r"\boxed{10^{-10^{10}} + x}",
    r"\boxed{((((10!)!)!)!)!}",
    r"\boxed{\sum_{k=1}^{10^9} \frac{1}{k}}",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_are_wrong_and_terminate(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(verifier, "TIME_LIMIT_SECONDS", 0.3)
        assert not mathematics("34", text).correct and not choice("34", text).correct
    assert mathematics("1/2", r"\boxed{2/4}").correct  # the next answer is graded normally


def test_slow_answer_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "TIME_LIMIT_SECONDS", 0.3)
    assert integer("34", r"\boxed{10^{10^{10}}}") == Grade(False, "10^{10^{10}}", "boxed/gave-up")
    assert integer("34", r"\boxed{" + "3" * (MAX_ANSWER_CHARACTERS + 1) + "}").rule == "boxed/too-long"


def test_interrupt_leaves_no_pending_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mathematics("1/2", r"\boxed{2/4}").correct
    child = verifier.VERIFIER._child
    assert child is not None and child.stdout is not None

    def interrupt() -> str:
        time.sleep(0.2)  # the reply is in the pipe
        raise KeyboardInterrupt

    monkeypatch.setattr(child, "stdout", type("Interrupted", (), {"readline": staticmethod(interrupt)})())
    monkeypatch.setattr(child, "communicate", child.wait)
    with pytest.raises(KeyboardInterrupt):
        mathematics("1/2", r"\boxed{3/6}")
    assert not mathematics("1/2", r"\boxed{3/7}").correct


def verifier_pid() -> int:
    assert mathematics("1/2", r"\boxed{2/4}").correct
    assert verifier.VERIFIER._child is not None
    return verifier.VERIFIER._child.pid


def test_fork_starts_its_own_verifier() -> None:
    with get_context("fork").Pool(1) as pool:
        assert pool.apply(verifier_pid) != verifier_pid()
    own_pid = verifier_pid()
    with get_context("fork").Pool(1) as pool:
        assert pool.apply(verifier_pid) != own_pid
    assert verifier_pid() == own_pid


def test_dead_verifier_is_replaced() -> None:
    dead = verifier_pid()
    os.kill(dead, signal.SIGKILL)
    os.waitid(os.P_PID, dead, os.WEXITED | os.WNOWAIT)
    assert verifier_pid() != dead
