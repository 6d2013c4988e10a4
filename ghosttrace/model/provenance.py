"""Provenance of a run, as recorded in run.json: model, policy, software versions and device."""

from collections.abc import Mapping
from typing import Any

from ghosttrace.model.checkpoint import Checkpoint, fingerprint
from ghosttrace.runs.folder import versions


def provenance(command: str, checkpoint: Checkpoint, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of run.json that all measuring commands share.

    Args:
        command: name of the command.
        checkpoint: the model with its policy.
        options: options of the command line; empty for a run from Python.
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
