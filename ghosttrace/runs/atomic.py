"""Atomic writing of files: a file appears complete or not at all."""

import os
from pathlib import Path

from ghosttrace.errors import UserError


def commit_file(partial: Path, path: Path) -> None:
    """Rename a finished file to its final path, and return once file and name are flushed to disk.

    The file appears complete or not at all, even if the process or the machine dies.

    Args:
        partial: the complete file under a temporary name, in the same folder as `path`.
        path: the final path.
    """
    _sync(partial)
    partial.replace(path)
    _sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        UserError: the file cannot be written.
    """
    partial = path.with_name(f"{path.name}.part")
    try:
        partial.write_text(text, encoding="utf-8")
        commit_file(partial, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): free disk space or change the permissions"
        ) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
