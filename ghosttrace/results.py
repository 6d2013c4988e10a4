"""Opening of finished run folders as result objects."""

from pathlib import Path

from ghosttrace.ablation.result import AblationResult
from ghosttrace.auditing.result import AuditResult
from ghosttrace.errors import UserError
from ghosttrace.ghost_bits.result import BitsResult
from ghosttrace.patching.result import PatchResult
from ghosttrace.probing.result import ProbeResult
from ghosttrace.runs.folder import read_json
from ghosttrace.runs.paths import check_path
from ghosttrace.runs.result import RunResult
from ghosttrace.training.result import RLResult, SftResult

RESULT_CLASSES: dict[str, type[RunResult]] = {
    result_class.command: result_class
    for result_class in (AblationResult, BitsResult, ProbeResult, PatchResult, AuditResult, SftResult, RLResult)
}
"""Result class of each command that measures or trains."""


def open_run(folder: str | Path) -> RunResult:
    """Open the result of a finished run; it equals the result that the run itself returned.

    Args:
        folder: run folder of `ghosttrace ablate`, `bits`, `probe`, `patch`, `audit`, `sft` or `rl`.

    Returns:
        An object of the command's result class, such as `AblationResult`.

    Raises:
        UserError: the folder is not a finished run of one of these commands.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from ghosttrace import bits
        >>> with TemporaryDirectory() as folder:
        ...     run = bits("toy-mixed", bench="ledger-h3", limit=2, out=folder)
        ...     open_run(folder) == run
        True
    """
    path = Path(folder)
    check_path(path)
    if not (path / "run.json").is_file():
        raise UserError(f"{path} is not a run: give a folder that a ghosttrace command wrote, with its run.json")
    command = read_json(path / "run.json", "command")["command"]
    if command not in RESULT_CLASSES:
        raise UserError(
            f"{path} is a run of {command!r}, which has no result: give a run of {', '.join(RESULT_CLASSES)}"
        )
    return RESULT_CLASSES[command].open(path)
