"""Compare and evaluate mathematical expressions with math-verify, in a child process with a time limit.

math-verify can run forever on an answer such as `10^{10^{10}}`, because its own time limit does not interrupt such a
computation and does not work in threads. The child process is killed after `TIME_LIMIT_SECONDS` of CPU time, and the
next request starts a new one.
"""

import inspect
import json
import os
import subprocess
import sys
from subprocess import DEVNULL, PIPE
from threading import Lock

from ghosttrace.errors import UserError

TIME_LIMIT_SECONDS = 5.0  # CPU seconds per request, as in the Memento paper


def _serve() -> None:
    """Answer each line [limit, gold, answer] with 0.0 or 1.0, and [limit, expression] with its value or nan.

    Runs from its source, so that the child process does not import torch.
    """
    import json
    import signal
    import sys

    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    # Units are off because math-verify reads the d of 5d as a unit.
    rules = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    config = [LatexExtractionConfig(boxed_match_priority=-1, normalization_config=rules)]

    def value(parsed: list[object]) -> float:
        try:
            return float(parsed[0].evalf())  # type: ignore[attr-defined]
        except (IndexError, AttributeError, TypeError, ValueError, ArithmeticError):
            return float("nan")

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and kills this process if necessary
    print("ready", flush=True)
    for line in sys.stdin:
        limit, *texts = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, limit)  # the kernel kills the process even within one long operation
        parsed = [parse(f"${latex}$", config, "no_fallback", "first_match", 0) for latex in texts]
        # With the default of 15 digits, any two numbers below 1e-15 would be equal.
        reply = verify(*parsed, numeric_precision=100, timeout_seconds=0) if len(parsed) == 2 else value(parsed[0])
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(float(reply), flush=True)


class Verifier:
    """Client of math-verify in a child process, which is started on demand and restarted after it was killed."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Drop the reference to the child process without killing it."""
        self._lock = Lock()
        self._child: subprocess.Popen[str] | None = None

    def equal(self, gold: str, answer: str) -> bool | None:
        """Return math-verify's verdict, or None if the child exceeded `TIME_LIMIT_SECONDS` or ran out of memory."""
        reply = self._request(gold, answer)
        return None if reply is None else bool(reply)

    def value(self, expression: str) -> float | None:
        """Return the value of an expression, nan if it is not a real number, or None if it exceeded the limits."""
        return self._request(expression)

    def _request(self, *texts: str) -> float | None:
        with self._lock:
            # Clear the reference while the child works: after an interruption it would still send the old reply.
            child, self._child = self._child, None
            if child is None or child.poll() is not None:
                child = self._start()
            try:
                assert child.stdin and child.stdout
                print(json.dumps([TIME_LIMIT_SECONDS, *texts]), file=child.stdin, flush=True)
                reply = child.stdout.readline()
                self._child = child if reply else None
            finally:
                if self._child is None:
                    child.kill()
                    child.communicate()
        return float(reply) if reply else None

    def _start(self) -> "subprocess.Popen[str]":
        program = [sys.executable, "-P", "-c", f"{inspect.getsource(_serve)}\n_serve()"]
        child = subprocess.Popen(program, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True)
        if child.stdout is None or child.stdout.readline() != "ready\n":
            child.kill()
            raise UserError("grading needs math-verify: pip install 'math-verify[antlr4_13_2]'")
        return child


VERIFIER = Verifier()
if sys.platform != "win32":
    os.register_at_fork(after_in_child=VERIFIER.reset)  # a forked process must not share the pipes
