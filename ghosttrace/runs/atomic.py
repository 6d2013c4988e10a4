"""Files that appear complete or not at all, whatever dies while they are written."""

import os
from pathlib import Path


def commit_file(partial: Path, path: Path) -> None:
    """Give a file its name once it is on the disk, and wait until the name is there too.

    A file appears complete or not at all, and what is done afterwards happened afterwards, whatever
    dies in between.
    """
    _sync(partial)
    partial.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
