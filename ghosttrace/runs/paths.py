"""Checks of the paths that a user gives, before any work is done."""

import os
from pathlib import Path

from ghosttrace.errors import UserError

FILES = (".lock", "run.json", "samples.jsonl", "samples.parquet", "summary.json")
"""Files that a run writes."""


def check_path(path: Path) -> None:
    """Check that a path can be recorded in files and looked up.

    Raises:
        UserError: the path is not UTF-8 text, or too long for the file system.
    """
    try:
        str(path).encode()
        path.exists()
    except UnicodeEncodeError as error:
        raise UserError(f"{str(path)!r} is not UTF-8 text: give another name") from error
    except OSError as error:
        raise UserError(f"{path} cannot be used ({error.strerror}): give another name") from error


def check_new(folder: Path) -> None:
    """Check that a folder can be that of a new run.

    The remains of a run that was killed before run.json was written do not count.

    Raises:
        UserError: the path cannot be used (see `check_path`), the folder cannot be made, or it holds other files.
    """
    check_path(folder)
    if not folder.is_dir():
        parent = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise UserError(f"{folder} cannot be made, because {parent} is no folder that can be written: give another")
        return
    figures = folder / "figures"
    has_figures = figures.is_dir() and any(figures.iterdir())
    if has_figures or {path.name for path in folder.iterdir()} - {".lock", "run.part", "figures"}:
        is_run = (folder / "run.json").exists()
        problem = f"another run: continue it with --resume {folder}, or" if is_run else "other files:"
        raise UserError(f"{folder} holds {problem} give --out a new folder")


def check_files(folder: Path) -> None:
    """Check that a run can write its files: no folder and no dangling link has the name of one of them.

    Raises:
        UserError: one of the files cannot be written.
    """
    for name in FILES:
        path = folder / name
        if os.path.lexists(path) and (not path.is_file() or (name == ".lock" and path.is_symlink())):
            raise UserError(f"{path} is not a file: remove it")
