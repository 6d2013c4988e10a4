"""The command line, or the Python call, that repeats a run."""

import shlex
from collections.abc import Mapping
from typing import Any

FLAGS = {"role": "--in"}
"""Options whose flag is not their name."""
SWITCHES = {"mask_delimiters": {True: "--mask-delimiters", False: "--keep-delimiters"}, "mlp": {False: "--no-mlp"}}
"""Flags of options that are on or off, where off is not the default or has a flag of its own."""


def repeat_command(configuration: Mapping[str, Any]) -> str | None:
    """Return the command line of a run, or the call of a run from Python; None if it was not recorded.

    Args:
        configuration: Content of run.json.

    Example:
        >>> repeat_command({"command": "bits", "options": {"bench": "ledger-h1", "limit": 20, "law": None}})
        'ghosttrace bits --bench ledger-h1 --limit 20'
    """
    options = configuration.get("options")
    if not options:
        return configuration.get("call")
    words = ["ghosttrace", configuration["command"]]
    for name, value in options.items():
        words += _words(name, value)
    return " ".join(words)


def _words(name: str, value: Any) -> list[str]:
    """Return the words of one option; none for an option that was not given."""
    flag = FLAGS.get(name, f"--{name.replace('_', '-')}")
    if value is None:
        return []
    if isinstance(value, bool):
        switch = SWITCHES.get(name, {}).get(value, flag if value else None)
        return [] if switch is None else [switch]
    items = value if isinstance(value, list) else [value]
    return [word for item in items for word in (flag, shlex.quote(str(item)))]
