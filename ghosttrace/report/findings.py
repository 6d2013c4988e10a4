"""Words that the findings of several instruments share."""

from collections.abc import Sequence

DO_NOT_RELY = "Do not rely on"
"""Start of every finding that withdraws a result; the terminal shows these sentences in red."""

KV_NAMES = {"k": "keys", "v": "values", "kv": "keys and values", "hidden": "hidden states"}
"""Cached states by their code in the results."""


def failed_controls_text(failures: Sequence[str]) -> str:
    """Return the sentence that withdraws the numbers of a run.

    Args:
        failures: Descriptions of the controls that failed; at least one.

    Example:
        >>> failed_controls_text(["placebo moved accuracy"])
        'Do not rely on these numbers, because a control failed: placebo moved accuracy.'
    """
    return f"{DO_NOT_RELY} these numbers, because a control failed: {'; '.join(failures)}."
