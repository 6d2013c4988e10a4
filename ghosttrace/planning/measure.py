"""Measurement of one command run as a process of its own: time, memory and disk."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from time import perf_counter
from typing import IO

from ghosttrace.errors import UserError

FINISHED = (0, 10, 11, 12)
"""Exit codes of runs that have finished, whatever they found."""

SECONDS_BETWEEN_LOOKS = 0.2
"""Seconds between two looks at the size of a run folder."""

LAST_OF_STEP = re.compile(r"(.+): ([\d,]+) of \2 after [\d,]+ s")
"""The line that a command prints at the end of a step (see `ghosttrace.cli.progress`)."""

REST = "end"
"""Name of what follows the last step that is shown, in `Measurement.steps`."""


@dataclass(frozen=True)
class StepTime:
    """Time of one step of a run.

    Attributes:
        seconds: Wall time in seconds, without the waiting for a core.
        total: Number of parts of the step, such as traces to read or probes to fit; 0 if the run did not show it.
    """

    seconds: float
    total: int


@dataclass(frozen=True)
class Measurement:
    """What one run took.

    Attributes:
        size: Value of the option that sets the size.
        amount: Units of work at this size (see `ghosttrace.planning.workload.Workload`).
        seconds: Wall time in seconds, from the start of the process to its end.
        waiting: Seconds of it in which the process waited for a core that other processes had.
        cpu: Seconds of CPU time, of all cores together.
        memory: Largest resident memory in bytes.
        gpu_memory: Largest memory reserved on one GPU in bytes; 0 without a GPU.
        peak_disk: Largest size of the run folder in bytes while the run lasted.
        disk: Size of the finished run folder in bytes.
        steps: Time of each step whose progress is shown, in the order of their ends, and `REST`. The start of the
            process is part of the first.
    """

    size: int
    amount: int
    seconds: float
    waiting: float
    cpu: float
    memory: float
    gpu_memory: float
    peak_disk: float
    disk: float
    steps: dict[str, StepTime]

    @property
    def undisturbed(self) -> float:
        """Wall time in seconds without the waiting."""
        return sum(step.seconds for step in self.steps.values())


class RefusedError(UserError):
    """A command refused its input; the message is its own."""


def measure(arguments: Sequence[str], folder: Path, size: int, amount: int) -> Measurement:
    """Run a command of GhostTrace with a run folder of its own, and measure it.

    Args:
        arguments: The command line, without `ghosttrace` and `--out`.
        folder: Folder to create; it gets `run` (the run folder) and `usage.json`.
        size, amount: See `Measurement`.

    Raises:
        RefusedError: The command refuses its input at this size, with exit code 2.
        UserError: An option does not exist, or the command fails or writes no run folder.
    """
    folder.mkdir(parents=True)
    run, usage = folder / "run", folder / "usage.json"
    program = [sys.executable, "-m", "ghosttrace.planning.child", str(usage), *arguments, "--out", str(run)]
    begin = perf_counter()
    process = subprocess.Popen(
        program, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    log, sizes = _Log(process.stderr, process.pid, begin), _FolderSizes(run)
    try:
        _, status, used = os.wait4(process.pid, 0)
        seconds = perf_counter() - begin
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        log.join()
        sizes.stop()
    process.returncode = os.waitstatus_to_exitcode(status)
    _check_finished(process.returncode, log.lines, run)
    noted = json.loads(usage.read_text(encoding="utf-8"))
    kilobyte = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS
    return Measurement(
        size,
        amount,
        seconds,
        noted["waiting"],
        used.ru_utime + used.ru_stime,
        float(kilobyte * used.ru_maxrss),
        float(noted["gpu_bytes"]),
        float(max(sizes.peak, folder_size(run))),
        float(folder_size(run)),
        _steps(log.ends, seconds - noted["waiting"]),
    )


def _steps(ends: Sequence[tuple[str, int, float]], undisturbed: float) -> dict[str, StepTime]:
    """Return the time of each step from the times of their ends; steps of one name are added up."""
    steps: dict[str, StepTime] = {}
    before = 0.0
    for name, total, end in [*ends, (REST, 0, undisturbed)]:
        known = steps.get(name, StepTime(0.0, 0))
        steps[name] = StepTime(known.seconds + max(0.0, end - before), known.total + total)
        before = max(before, end)
    return steps


def _check_finished(exit_code: int, lines: Sequence[str], run: Path) -> None:
    """Raise if a run did not finish; its last lines say why."""
    boxed = " ".join(line.strip("│ ") for line in lines if line.startswith("│"))
    if exit_code == 2 and boxed:  # an option that the command does not have, at any size
        raise UserError(boxed)
    said = [line for line in lines if line.strip()]
    last = said[-1] if said else "it printed nothing"
    if exit_code == 2:
        raise RefusedError(last.removeprefix("ghosttrace: "))
    if exit_code not in FINISHED:
        raise UserError(f"a calibration run failed with exit code {exit_code} ({last}): try the command itself first")
    if not run.is_dir():
        raise UserError("the command wrote no run: give one that measures or trains something")


def folder_size(folder: Path) -> int:
    """Return the bytes of all files below a folder; files that vanish meanwhile count as 0."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:  # deleted since it was listed
                continue
    return total


class _Log(Thread):
    """Reader of a process's standard error, which notes when each step ended.

    Attributes:
        lines: All lines.
        ends: Name of each step, the number of its parts, and the seconds from the start of the process to its end,
            without the seconds of waiting.
    """

    def __init__(self, stream: IO[str], pid: int, begin: float) -> None:
        super().__init__(daemon=True)
        self.lines: list[str] = []
        self.ends: list[tuple[str, int, float]] = []
        self._stream, self._pid, self._begin = stream, pid, begin
        self.start()

    def run(self) -> None:
        """Read until the process closes its standard error."""
        for line in self._stream:
            self.lines.append(line.rstrip("\n"))
            found = LAST_OF_STEP.search(line)
            if found:
                seconds = perf_counter() - self._begin - self._seconds_waiting()
                self.ends.append((found[1], int(found[2].replace(",", "")), seconds))

    def _seconds_waiting(self) -> float:
        try:
            return int(Path(f"/proc/{self._pid}/schedstat").read_text().split()[1]) / 1e9
        except (OSError, ValueError, IndexError):
            return 0.0


class _FolderSizes(Thread):
    """Observer of a folder while its run lasts.

    Attributes:
        peak: Largest size seen, in bytes.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._folder, self._ended = folder, Event()
        self.start()

    def run(self) -> None:
        """Look again and again until `stop` is called."""
        while not self._ended.wait(SECONDS_BETWEEN_LOOKS):
            self.peak = max(self.peak, folder_size(self._folder))

    def stop(self) -> None:
        """End the observation."""
        self._ended.set()
        self.join()
