"""Provenance of a run, as recorded in run.json: model, law, software versions and device."""

from collections.abc import Mapping
from typing import Any

from ghosttrace.law.parse import describe_law
from ghosttrace.model.checkpoint import Checkpoint, fingerprint
from ghosttrace.runs.folder import versions


def provenance(
    command: str, checkpoint: Checkpoint, options: Mapping[str, Any], call: str | None = None
) -> dict[str, Any]:
    """Return the entries of run.json that all measuring commands share.

    Args:
        command: name of the command.
        checkpoint: the model with its law.
        options: options of the command line; empty for a run from Python.
        call: the call of a run from Python, if it can be written as text (see `ghosttrace.runs.call.python_call`).
    """
    return {
        "command": command,
        "model": checkpoint.name,
        "options": dict(options),
        **({} if options else {"call": call}),
        "sha256": fingerprint(checkpoint),
        "policy": checkpoint.policy.to_dict(),
        **({} if checkpoint.other_law is None else describe_law(checkpoint.other_law)),
        "versions": versions(),
        "device": str(checkpoint.model.device),
        "dtype": str(checkpoint.model.dtype).removeprefix("torch."),
    }
