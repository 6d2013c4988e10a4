"""What a run depends on whatever it measures: model, law, software and device, as run.json records them."""

from collections.abc import Mapping
from typing import Any

from ghosttrace.model.checkpoint import Checkpoint, fingerprint
from ghosttrace.runs.folder import versions


def provenance(command: str, checkpoint: Checkpoint, options: Mapping[str, Any]) -> dict[str, Any]:
    """The part of run.json that all measuring commands share.

    Args:
        command: that measures.
        checkpoint: the model and its law.
        options: the command line's; empty for a run from Python.
    """
    return {
        "command": command,
        "model": checkpoint.name,
        "options": dict(options),
        "sha256": fingerprint(checkpoint),
        "policy": checkpoint.policy.to_dict(),
        "versions": versions(),
        "device": str(checkpoint.model.device),
        "dtype": str(checkpoint.model.dtype).removeprefix("torch."),
    }
