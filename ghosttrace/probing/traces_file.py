"""traces.parquet: the traces of a run with their secrets, their split, and what is retained of them."""

from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from ghosttrace.data.task import Task
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.split import Split
from ghosttrace.probing.text import retained
from ghosttrace.runs.records import settle


def write_traces(path: Path, checkpoint: Checkpoint, task: Task, parts: Split) -> None:
    """One row a trace: base, secret, block, split, labels, and the retained tokens with their places."""
    texts = retained(checkpoint, task)
    columns: dict[str, Any] = {
        "base": [sample.base for sample in task.samples],
        "secret": [sample.secret for sample in task.samples],
        "block": [sample.block for sample in task.samples],
        "where": [list(sample.where) for sample in task.samples],
        "split": parts.names().tolist(),
        "retained": [tokens.tolist() for tokens, _ in texts],
        "places": [places.tolist() for _, places in texts],
    }
    for number, target in enumerate(task.targets):
        columns[target.name] = [
            None if sample.labels[number] < 0 else target.classes[sample.labels[number]] for sample in task.samples
        ]
    unsettled = path.with_suffix(".part")
    parquet.write_table(pa.table(columns), unsettled, compression="zstd")
    settle(unsettled, path)
