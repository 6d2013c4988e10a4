"""The Python call of a run, as recorded in run.json, so that the run can be repeated."""

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

NOT_RECORDED = ("out", "resume", "progress", "options", "ray", "workers")
"""Arguments that do not change the results."""


def python_call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str | None:
    """Return a call of a public function of `ghosttrace` as text, without arguments that have their default.

    Args:
        function: the function.
        arguments: its arguments by name, as in `locals()`.

    Returns:
        Text that evaluates to the same call; None if an argument is an object that cannot be written as text. Objects
        with an attribute `python_text`, such as a loaded checkpoint, are written as it says.

    Example:
        >>> from ghosttrace import bits
        >>> python_call(bits, {"model": "toy-mixed", "bench": "ledger-h1", "limit": 100, "out": "runs/a"})
        "ghosttrace.bits('toy-mixed', bench='ledger-h1')"
    """
    first, *others = signature(function).parameters.values()
    texts = [_text(arguments[first.name])]
    for parameter in others:
        value = arguments.get(parameter.name, parameter.default)
        if parameter.kind is Parameter.VAR_KEYWORD:
            texts += [_argument(name, item) for name, item in arguments.get(parameter.name, {}).items()]
        elif parameter.name not in NOT_RECORDED and not _same(value, parameter.default):
            texts.append(_argument(parameter.name, value))
    known = [text for text in texts if text is not None]
    return f"ghosttrace.{function.__name__}({', '.join(known)})" if len(known) == len(texts) else None


def _argument(name: str, value: Any) -> str | None:
    text = _text(value)
    return None if text is None else f"{name}={text}"


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and bool(value == default)


def _text(value: Any) -> str | None:
    """Return a value as Python text; None if it cannot be written."""
    if hasattr(value, "python_text"):
        text: str | None = value.python_text
        return text
    if isinstance(value, np.generic):
        return _text(value.item())
    if isinstance(value, float) and not isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, Path):
        return repr(str(value))
    if isinstance(value, Mapping):
        pairs = [(_text(name), _text(item)) for name, item in value.items()]
        return None if any(None in pair for pair in pairs) else "{" + ", ".join(f"{n}: {i}" for n, i in pairs) + "}"
    if isinstance(value, list | tuple | range):
        items = [_text(item) for item in value]
        return None if None in items else f"[{', '.join(map(str, items))}]"
    return None
