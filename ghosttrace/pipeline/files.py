"""Files of the pipeline: folders in use by one process, files that appear complete or not at all, and the log."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from ghosttrace.errors import UserError
from ghosttrace.runs.atomic import commit_file

LOG = logging.getLogger("ghosttrace.pipeline")


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Create a folder, and raise a `UserError` if its files cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror or error}): free disk space or change the permissions; "
            "the answers so far are kept, so the same command continues"
        ) from error


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Create a folder and keep other processes out of it; the lock ends with this process, even if it is killed.

    Raises:
        UserError: another process uses the folder, or it cannot be written.
    """
    with writable(folder):
        try:
            with filelock.FileLock(folder / ".lock", blocking=False):
                yield
        except filelock.Timeout as error:
            raise UserError(f"another process is using {folder}: wait for it, or give another --out") from error


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Append the log of the pipeline to a file."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    LOG.addHandler(handler)
    level = LOG.level
    LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOG.setLevel(level)
        LOG.removeHandler(handler)
        handler.close()


@contextmanager
def committed_text(path: Path) -> Iterator[Callable[[str], object]]:
    """Yield a function that writes text; the file appears at the end, unless an error ends the block."""
    partial = path.with_name(path.name + ".part")
    with partial.open("w", encoding="utf-8") as file:
        yield file.write
    commit_file(partial, path)
