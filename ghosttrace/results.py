"""Any finished run folder, back as the result object of the instrument that made it."""

from pathlib import Path

from ghosttrace.ablation.result import AblationResult
from ghosttrace.auditing.result import AuditResult
from ghosttrace.errors import UserError
from ghosttrace.ghost_bits.result import BitsResult
from ghosttrace.patching.result import PatchResult
from ghosttrace.probing.result import ProbeResult
from ghosttrace.runs.folder import read_json
from ghosttrace.runs.result import RunResult

RESULT_CLASSES: dict[str, type[RunResult]] = {
    kind.command: kind for kind in (AblationResult, BitsResult, ProbeResult, PatchResult, AuditResult)
}
"""The kind of result of each measuring command."""


def open_run(folder: str | Path) -> RunResult:
    """The result of a finished run: equal to what the run itself returned.

    Args:
        folder: as `ghosttrace ablate`, `bits`, `probe`, `patch` or `audit` left it.

    Raises:
        UserError: the folder is no finished run of one of these commands.
    """
    path = Path(folder)
    if not (path / "run.json").is_file():
        raise UserError(f"{path} is not a run: give the folder that a ghosttrace command wrote, with its run.json")
    command = read_json(path / "run.json", "command")["command"]
    if command not in RESULT_CLASSES:
        raise UserError(f"{path} is a run of {command!r}, and results are those of {', '.join(RESULT_CLASSES)}")
    return RESULT_CLASSES[command].open(path)
