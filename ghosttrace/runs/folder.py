"""Run folders: what a measuring command leaves behind, and how a run that died goes on.

run.json          the whole configuration, hashes, policy, seeds, versions, device, dtype
samples.jsonl     samples as they are done; gone once the run is finished
samples.parquet   one row per sample, once the run is finished
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
from typing import Any

import filelock
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ghosttrace.errors import RunWarning, UserError
from ghosttrace.runs.atomic import commit_file

DISTRIBUTION = "ghosttrace-kv"
RECORDED_PACKAGES = (
    *("torch", "transformers", "tokenizers", "numpy", "scipy", "pandas", "scikit-learn"),
    *("datasets", "math-verify", "sympy"),
)
ROUNDING_ONLY_KEYS = (
    "device",
    "options.device",
    *(f"{a}.{b}" for a in ("settings", "options") for b in ("batch_size", "batch_tokens")),
)
"""What may change under --resume: answers agree up to rounding."""
REFERENCE_ARM = "memento"
"""The arm that all others are compared with: the channel open, as the model was trained to be used."""

UNWRITABLE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def default_folder(command: str, model: str) -> Path:
    """`runs/<command>-<model>-<time>`, where the command line puts a run unless it is given a folder."""
    name = re.sub(r"[^\w.-]+", "-", model).strip("-.")
    return Path("runs") / f"{command}-{name}-{datetime.now():%Y%m%d-%H%M%S-%f}"


@contextmanager
def new_run_folder(out: Path) -> Iterator[Path]:
    """The folder of a new run. A run that is refused leaves none.

    Raises:
        UserError: the folder cannot be made, holds something already, or cannot be written any more.
    """
    _check_new(out)
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made ({error.strerror}): give --out a folder that can") from error
    with lock_folder(out):
        _check_new(out)  # again: another process may have begun, and even ended, in the meantime
        try:
            yield out
        except UserError:
            if not _has_samples(out):
                shutil.rmtree(out)
            raise


def _check_new(folder: Path) -> None:
    """Refuse a folder that holds more than a kill leaves behind before run.json is written."""
    if not folder.is_dir():
        return
    figures = folder / "figures"
    drawn = figures.is_dir() and any(figures.iterdir())
    if drawn or {path.name for path in folder.iterdir()} - {".lock", "run.part", "figures"}:
        is_run = (folder / "run.json").exists()
        what = f"another run: go on with --resume {folder}, or" if is_run else "something else:"
        raise UserError(f"{folder} holds {what} give --out a new folder")


@contextmanager
def open_run_folder(out: Path | None, resume: Path | None, configuration: Mapping[str, Any]) -> Iterator[Path]:
    """The folder of a new run, its run.json written; or that of a run to go on with.

    Args:
        out: the folder of a new run; `default_folder` if None.
        resume: the folder of a run to go on with, if any.
        configuration: what run.json says, `command` and `model` among it.

    Raises:
        UserError: see `new_run_folder` and `resumed_run_folder`.
    """
    if resume is not None and out is not None:
        raise UserError("--resume goes on in the run's own folder: leave out --out")
    if resume is not None:
        with resumed_run_folder(resume, configuration) as folder:
            yield folder
        return
    with new_run_folder(out or default_folder(configuration["command"], configuration["model"])) as folder:
        write_json(folder / "run.json", configuration)
        yield folder


@contextmanager
def resumed_run_folder(folder: Path, configuration: Mapping[str, Any]) -> Iterator[Path]:
    """The folder of a run to go on with.

    Args:
        folder: of the run.
        configuration: what run.json would say now.

    Raises:
        UserError: see `check_resumable` and `lock_folder`; or nothing is left to do.

    Warns:
        RunWarning: something differs from the run as it was begun and may.
    """
    recorded = read_configuration(folder, configuration["command"])
    _check_unfinished(folder)
    if recorded.get("options") and not configuration.get("options"):
        again = f"ghosttrace {configuration['command']} --resume {folder}"
        raise UserError(f"{folder} was begun from the command line: go on with it with {again}")
    with lock_folder(folder):
        _check_unfinished(folder)  # again: another process may have finished it in the meantime
        for difference in check_resumable(recorded, configuration, folder):
            warnings.warn(difference, RunWarning, stacklevel=3)
        (folder / "figures").mkdir(exist_ok=True)
        yield folder


def _check_unfinished(folder: Path) -> None:
    """Refuse a run of which nothing is left to do."""
    if is_finished(folder):
        raise UserError(f"{folder} is finished: nothing is left to do")


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep every other process off a run; the lock goes with the process that holds it, however it ends.

    Raises:
        UserError: another process is on it, or the folder cannot be written (any more).
    """
    lock = filelock.FileLock(folder / ".lock", blocking=False)
    resume = f"what is done is kept: go on with --resume {folder}"
    try:
        with lock:
            try:
                yield
            except UserError as error:
                if _has_samples(folder):
                    raise UserError(f"{error}; {resume}") from error
                raise
            (folder / ".lock").unlink(missing_ok=True)
    except filelock.Timeout as error:
        raise UserError(f"another process is working on {folder}: wait for it, or give --out another folder") from error
    except OSError as error:
        if error.errno not in UNWRITABLE_ERRNOS:
            raise
        said = error.strerror or str(error)
        raise UserError(f"{folder} cannot be written ({said}): make room or rights; {resume}") from error


def _has_samples(folder: Path) -> bool:
    log = folder / "samples.jsonl"
    trained = any((folder / "checkpoints").glob("checkpoint-*"))
    return trained or (folder / "samples.parquet").exists() or (log.exists() and log.stat().st_size > 0)


def is_finished(folder: Path) -> bool:
    """Whether every sample of a run has been written."""
    return (folder / "samples.parquet").exists() and not (folder / "samples.jsonl").exists()


def read_configuration(folder: Path, command: str) -> dict[str, Any]:
    """The run.json of a run.

    Raises:
        UserError: there is none, it is damaged, or it belongs to another command.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a run: give the folder that ghosttrace {command} wrote, with its run.json")
    found = read_json(path)
    if found.get("command") != command:
        raise UserError(f"{folder} is a run of ghosttrace {found.get('command')}, not of ghosttrace {command}")
    return found


def read_json(path: Path, *needed: str) -> dict[str, Any]:
    """A JSON file of a run folder.

    Args:
        path: the file.
        needed: what must be in it.

    Raises:
        UserError: it cannot be read, or is not such a file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is missing or damaged: put back a copy of it, or make the run again") from error
    if not isinstance(found, dict) or set(needed) - found.keys():
        raise UserError(f"{path} is not what this version writes: put back a copy of it, or make the run again")
    return found


def check_resumable(recorded: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> list[str]:
    """Refuse to go on with a run under another configuration.

    Args:
        recorded: what run.json says.
        now: what this process would write there.
        folder: the run.

    Returns:
        What differs and may (versions, device, batch size) and what that does, in words.

    Raises:
        UserError: anything else differs; the first difference is named.
    """
    allowed = []
    for path, before, after in _differences(recorded, as_json(now)):
        said = f"{path} is {after!r} now and {before!r} in the run"
        if path.split(".")[0] == "versions":
            allowed.append(f"{said}: results may differ")
        elif path in ROUNDING_ONLY_KEYS:
            allowed.append(f"{said}: results agree up to rounding")
        else:
            raise UserError(f"{folder} cannot be resumed: {said}; run it as it was, or give --out a new folder")
    return allowed


def _differences(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Paths at which two JSON values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in {**a, **b}:
            yield from _differences(a.get(key), b.get(key), f"{path}.{key}" if path else key)
    elif a != b:
        yield path, a, b


def versions() -> dict[str, str]:
    """What the results depend on."""
    own = {"python": platform.python_version(), "ghosttrace": version(DISTRIBUTION)}
    return own | {package: version(package) for package in RECORDED_PACKAGES}


def as_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values as a file gives them back: tuples and arrays as lists, numpy's numbers as plain ones."""
    found: dict[str, Any] = json.loads(json.dumps(content, allow_nan=False, default=_plain))
    return found


def _plain(value: Any) -> Any:
    """What `json` cannot write by itself: arrays and numbers of numpy, and paths."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")


def stable_repr(value: object) -> str:
    """The `repr` of a method of the user's own, without addresses in memory, which differ from process to process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that a person can read; it appears whole or not at all."""
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    commit_file(partial, path)


def json_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as JSON values, with null for what is missing."""
    plain = table.astype(object).where(table.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in plain.to_dict("records")]


def write_figure(folder: Path, name: str, figure: Figure) -> None:
    """Write figures/<name>.png and .svg."""
    for kind in ("png", "svg"):
        figure.savefig(folder / "figures" / f"{name}.{kind}", dpi=150, bbox_inches="tight")
