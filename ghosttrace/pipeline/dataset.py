"""Data sets in files: both configurations of OpenMementos as Parquet and JSONL, and rows below the threshold apart."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import huggingface_hub
import pyarrow as pa
from pyarrow import parquet

from ghosttrace.errors import HUB_ERRORS, UserError
from ghosttrace.pipeline.assembly import DEFAULT_COLUMNS, SCHEMA
from ghosttrace.runs.atomic import commit_file

CONFIGURATIONS = ("default", "full", "rejected")
ROW_GROUP = 256  # rows of a Parquet row group
SCHEMAS = dict.fromkeys(CONFIGURATIONS, SCHEMA) | {
    "default": pa.schema([SCHEMA.field(name) for name in DEFAULT_COLUMNS])
}


class DatasetWriter:
    """Writer of a data set, row by row; the files appear when it ends without an error.

    Args:
        folder: folder of the data set; created if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts = dict.fromkeys(CONFIGURATIONS, 0)
        self._pending: dict[str, list[dict[str, Any]]] = {name: [] for name in CONFIGURATIONS}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._files = {}
        self._tables = {}
        for name in CONFIGURATIONS:
            folder = self.folder / name
            folder.mkdir(parents=True, exist_ok=True)
            self._files[name] = self._stack.enter_context((folder / "train.jsonl.part").open("w", encoding="utf-8"))
            writer = parquet.ParquetWriter(folder / "train.parquet.part", SCHEMAS[name])
            self._tables[name] = self._stack.enter_context(writer)
        return self

    def add(self, row: dict[str, Any]) -> None:
        """Write a training row to the configurations it belongs to."""
        for name in ("default", "full") if row["accepted"] else ("rejected",):
            columns = {column: row[column] for column in SCHEMAS[name].names}
            self._files[name].write(json.dumps(columns, ensure_ascii=False) + "\n")
            self._pending[name].append(columns)
            self.counts[name] += 1
            if len(self._pending[name]) == ROW_GROUP:
                self._write_group(name)

    def _write_group(self, name: str) -> None:
        self._tables[name].write_table(pa.Table.from_pylist(self._pending[name], SCHEMAS[name]))
        self._pending[name].clear()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            for name in CONFIGURATIONS:
                if self._pending[name]:
                    self._write_group(name)
        self._stack.close()
        if kind is None:
            for name in CONFIGURATIONS:
                for file in ("train.jsonl", "train.parquet"):
                    commit_file(self.folder / name / f"{file}.part", self.folder / name / file)


def push_to_hub(folder: Path, repository: str, private: bool = True) -> str:
    """Upload a data set and its card to the Hugging Face Hub.

    Args:
        folder: folder of a finished build.
        repository: hub id, such as `name/data`.
        private: whether a new repository is private.

    Returns:
        The address of the commit.

    Raises:
        UserError: the hub refuses.
    """
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        allowed = ["README.md", "figures/*", *(f"{name}/train.parquet" for name in CONFIGURATIONS)]
        commit = api.upload_folder(
            repo_id=repository, repo_type="dataset", folder_path=str(folder), allow_patterns=allowed
        )
    except (*HUB_ERRORS, ValueError) as error:
        raise UserError(
            f"{folder} cannot be pushed to {repository} ({error}): log in with `hf auth login`, or give another name"
        ) from error
    return str(commit)
