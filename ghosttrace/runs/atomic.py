"""Atomic writing of files: a file appears complete or not at all."""

import os
from pathlib import Path


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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
