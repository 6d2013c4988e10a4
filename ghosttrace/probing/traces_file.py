"""Writes traces.parquet of a run: the probed traces with their retained text."""

from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from ghosttrace.data.task import Task
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.split import Split
from ghosttrace.probing.text_baseline import retained_tokens
from ghosttrace.runs.atomic import commit_file


def write_traces(path: Path, checkpoint: Checkpoint, task: Task, parts: Split) -> None:
    """Write one row per trace: base, secret, block, split, labels, and the retained tokens with their positions.

    Args:
        path: Path of the file, which is written atomically.
        checkpoint: Provides the markup and the policy, which determine the retained tokens.
        task: The task.
        parts: The split of its samples.
    """
    texts = retained_tokens(checkpoint, task)
    columns: dict[str, Any] = {
        "base": [sample.base for sample in task.samples],
        "secret": [sample.secret for sample in task.samples],
        "block": [sample.block for sample in task.samples],
        "secret_indices": [list(sample.secret_indices) for sample in task.samples],
        "split": parts.split_names().tolist(),
        "retained": [tokens.tolist() for tokens, _ in texts],
        "retained_indices": [indices.tolist() for _, indices in texts],
    }
    for number, target in enumerate(task.targets):
        columns[target.name] = [
            None if sample.labels[number] < 0 else target.classes[sample.labels[number]] for sample in task.samples
        ]
    temporary = path.with_suffix(".part")
    parquet.write_table(pa.table(columns), temporary, compression="zstd")
    commit_file(temporary, path)
