"""Run folders: creation, locking, resuming, and reading and writing of their files.

run.json          configuration, hashes, policy, seeds, versions, device, dtype
samples.jsonl     finished samples of an unfinished run; deleted when the run finishes
samples.parquet   one row per sample, written when the run finishes
summary.json      {"command": …, "valid": bool, "results": [rows]}
figures/          png and svg
"""

import errno
import json
import platform
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np

from ghosttrace.errors import RunWarning, UserError
from ghosttrace.runs.atomic import commit_file
from ghosttrace.runs.paths import check_files, check_new, check_path

if TYPE_CHECKING:
    import pandas as pd

DISTRIBUTION = "ghosttrace-kv"
RECORDED_PACKAGES = (
    *("torch", "transformers", "tokenizers", "numpy", "scipy", "pandas", "scikit-learn"),
    *("datasets", "math-verify", "sympy"),
)
ROUNDING_ONLY_KEYS = (
    "device",
    "options.device",
    "options.engine_args",
    *(f"{section}.{key}" for section in ("settings", "options") for key in ("batch_size", "batch_tokens")),
)
"""Keys of run.json that may change under --resume, because results then still agree up to rounding."""
CALL_KEY = "call"
"""Key of run.json with the call of a run from Python. The same run can be called in several ways."""
REFERENCE_ARM = "memento"
"""The arm that all others are compared with: normal memento attention, with an open ghost channel."""

UNWRITABLE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def default_folder(command: str, model: str) -> Path:
    """Return `runs/<command>-<model>-<time>`, the default folder of a run from the command line."""
    name = re.sub(r"[^\w.-]+", "-", model).strip("-.")
    return Path("runs") / f"{command}-{name}-{datetime.now():%Y%m%d-%H%M%S-%f}"


@contextmanager
def new_run_folder(out: Path) -> Iterator[Path]:
    """Create and lock the folder of a new run; delete it again if a `UserError` ends the run without any samples.

    Raises:
        UserError: the folder cannot be created, is not empty, or can no longer be written to.
    """
    check_new(out)
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be created ({error.strerror}): give --out another folder") from error
    with lock_folder(out):
        check_new(out)  # check again under the lock: another process may have used the folder in the meantime
        try:
            yield out
        except UserError:
            if not _has_samples(out):
                shutil.rmtree(out)
            raise


@contextmanager
def open_run_folder(out: Path | None, resume: Path | None, configuration: Mapping[str, Any]) -> Iterator[Path]:
    """Create the folder of a new run with its run.json, or open the folder of an unfinished run.

    Args:
        out: folder of a new run; `default_folder` if None.
        resume: folder of an unfinished run to resume, if any.
        configuration: the content of run.json, including `command` and `model`.

    Raises:
        UserError: see `new_run_folder` and `resumed_run_folder`.
    """
    if resume is not None and out is not None:
        raise UserError("--resume continues in the folder of the run: leave out --out")
    if resume is not None:
        with resumed_run_folder(resume, configuration) as folder:
            yield folder
        return
    with new_run_folder(out or default_folder(configuration["command"], configuration["model"])) as folder:
        write_json(folder / "run.json", configuration)
        yield folder


@contextmanager
def resumed_run_folder(folder: Path, configuration: Mapping[str, Any]) -> Iterator[Path]:
    """Open and lock the folder of an unfinished run.

    Args:
        folder: the run folder.
        configuration: the content that run.json would have if the run started now.

    Raises:
        UserError: see `check_resumable` and `lock_folder`; or the run is finished.

    Warns:
        RunWarning: the configuration differs from run.json in a way that is allowed.
    """
    recorded = read_configuration(folder, configuration["command"])
    _check_unfinished(folder)
    if recorded.get("options") and not configuration.get("options"):
        command = f"ghosttrace {configuration['command']} --resume {folder}"
        raise UserError(f"{folder} was started from the command line: continue with {command}")
    with lock_folder(folder):
        _check_unfinished(folder)  # check again under the lock: another process may have finished it in the meantime
        for difference in check_resumable(recorded, configuration, folder):
            warnings.warn(difference, RunWarning, stacklevel=3)
        (folder / "figures").mkdir(exist_ok=True)
        yield folder


def _check_unfinished(folder: Path) -> None:
    """Raise if a run is finished."""
    if is_finished(folder):
        raise UserError(f"{folder} is finished and cannot be resumed: start a new run")


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a run folder against other processes; the lock is released when this process ends, even if it is killed.

    If a `UserError` ends the block after samples were written, the error message also says how to resume.

    Raises:
        UserError: another process holds the lock, or the folder cannot be written to.
    """
    check_files(folder)
    lock = filelock.FileLock(folder / ".lock", blocking=False)
    resume_hint = f"finished samples are kept: continue with --resume {folder}"
    try:
        with lock:
            try:
                yield
            except UserError as error:
                if _has_samples(folder):
                    raise UserError(f"{error}; {resume_hint}") from error
                raise
            (folder / ".lock").unlink(missing_ok=True)
    except filelock.Timeout as error:
        raise UserError(f"another process is using {folder}: wait for it, or give --out another folder") from error
    except OSError as error:
        if error.errno not in UNWRITABLE_ERRNOS:
            raise
        reason = error.strerror or str(error)
        fix = f"free disk space or change the permissions; {resume_hint}"
        raise UserError(f"{folder} cannot be written ({reason}): {fix}") from error


def _has_samples(folder: Path) -> bool:
    log = folder / "samples.jsonl"
    has_checkpoints = any((folder / "checkpoints").glob("checkpoint-*"))
    return has_checkpoints or (folder / "samples.parquet").exists() or (log.exists() and log.stat().st_size > 0)


def is_finished(folder: Path) -> bool:
    """Return True if all samples of a run have been written."""
    return (folder / "samples.parquet").is_file() and not (folder / "samples.jsonl").exists()


def read_configuration(folder: Path, command: str) -> dict[str, Any]:
    """Read the run.json of a run.

    Raises:
        UserError: run.json is missing or damaged, or belongs to another command.
    """
    path = folder / "run.json"
    check_path(path)
    if not path.is_file():
        raise UserError(f"{folder} is not a run: give the folder that ghosttrace {command} wrote, with its run.json")
    configuration = read_json(path)
    if configuration.get("command") != command:
        raise UserError(f"{folder} is a run of ghosttrace {configuration.get('command')}, not of ghosttrace {command}")
    return configuration


def read_json(path: Path, *required_keys: str) -> dict[str, Any]:
    """Read a JSON object from a file of a run folder.

    Args:
        path: the file.
        required_keys: keys that the object must have.

    Raises:
        UserError: the file cannot be read, is not a JSON object, or lacks a key.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is missing or damaged: restore a copy of it, or repeat the run") from error
    if not isinstance(content, dict) or set(required_keys) - content.keys():
        raise UserError(f"{path} is not what this version writes: restore a copy of it, or repeat the run")
    return content


def check_resumable(recorded: Mapping[str, Any], current: Mapping[str, Any], folder: Path) -> list[str]:
    """Check that a run can be resumed under the current configuration.

    Args:
        recorded: the content of run.json.
        current: the content that this process would write there.
        folder: the run folder, for messages.

    Returns:
        One message per allowed difference (versions, device, batch size), with its effect on results.

    Raises:
        UserError: anything else differs; the message names the first difference.
    """
    allowed = []
    for path, before, after in _differences(recorded, as_json(current)):
        if path == CALL_KEY:
            continue
        change = f"{path} is {after!r} now and {before!r} in the run"
        if path.split(".")[0] == "versions":
            allowed.append(f"{change}: results may differ")
        elif path in ROUNDING_ONLY_KEYS:
            allowed.append(f"{change}: results agree up to rounding")
        else:
            raise UserError(f"{folder} cannot be resumed: {change}; restore the old value, or give --out a new folder")
    return allowed


def _differences(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield path, value in `a` and value in `b` of every difference between two JSON values."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in {**a, **b}:
            yield from _differences(a.get(key), b.get(key), f"{path}.{key}" if path else key)
    elif a != b:
        yield path, a, b


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that the results depend on."""
    base_versions = {"python": platform.python_version(), "ghosttrace": version(DISTRIBUTION)}
    return base_versions | {package: version(package) for package in RECORDED_PACKAGES}


def as_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content as JSON would load it: tuples and arrays as lists, NumPy numbers as Python numbers."""
    loaded: dict[str, Any] = json.loads(json.dumps(content, allow_nan=False, default=_to_json_value))
    return loaded


def _to_json_value(value: Any) -> Any:
    """Convert NumPy arrays, NumPy numbers and paths, which `json` cannot write."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def stable_repr(value: object) -> str:
    """Return the `repr` of a user-defined method without memory addresses, which differ between processes."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def write_json(path: Path, content: Any) -> None:
    """Write an indented JSON file atomically."""
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    commit_file(partial, path)


def json_rows(table: "pd.DataFrame") -> list[dict[str, Any]]:
    """Return the rows of a table as JSON values, with None for missing values."""
    with_none = table.astype(object).where(table.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in with_none.to_dict("records")]
