"""Specifications of laws, such as `window:64,16`."""

from collections.abc import Mapping
from typing import Any

from ghosttrace.errors import UserError
from ghosttrace.law.chat import Chat
from ghosttrace.law.chunks import Chunks
from ghosttrace.law.expiry import MementoLaw, Policy
from ghosttrace.law.law import KeepAll, Law, SpecifiedLaw
from ghosttrace.law.log import Log
from ghosttrace.law.markup import Markup
from ghosttrace.law.sinks import Sinks
from ghosttrace.law.tools import Tools
from ghosttrace.law.turns import Turns
from ghosttrace.law.window import Window

LAWS: dict[str, type[SpecifiedLaw]] = {law.name: law for law in (Window, Sinks, Chunks, Turns, Tools, Log, KeepAll)}
"""The laws that a specification can name, beside Memento's."""

PARTIAL = ("h2o", "snapkv", "pyramidkv", "adakv")
RETURNING = ("quest", "infllm", "recall", "repair")
MEMENTO = "memento"


def is_memento(spec: str | None) -> bool:
    """Return whether a specification names Memento's grammar, which is also meant if there is none."""
    return spec is None or spec == MEMENTO


def parse_law(spec: str, chat: Chat) -> SpecifiedLaw:
    """Return the law of a specification.

    Args:
        spec: such as `window:64,16`.
        chat: tokens of the model's chat format.

    Raises:
        UserError: there is no such law, its arguments are invalid, or it needs something that the chat format lacks.
    """
    name, _, arguments = spec.partition(":")
    if name in PARTIAL:
        raise UserError(f"{name} evicts by head or layer, which is not one expiry per token: it is not covered")
    if name in RETURNING:
        raise UserError(f"{name} brings evicted keys back, which is not one expiry per token: it is not covered")
    if name not in LAWS:
        usages = ", ".join([MEMENTO, *(law.usage for law in LAWS.values())])
        raise UserError(f"there is no law {spec!r}: choose from {usages}")
    return LAWS[name].parse(arguments, chat)


def describe_law(law: Law) -> dict[str, Any]:
    """Return the entries of run.json for a law: `policy` for Memento's, `law` for any other."""
    if isinstance(law, MementoLaw):
        return {"policy": law.policy.to_dict()}
    return {"law": law.to_dict()}


def recorded_law(described: Mapping[str, Any], markup: Markup) -> Law:
    """Return the law that `describe_law` recorded.

    Args:
        described: an entry of run.json with `policy` or `law`.
        markup: the markup of the run.
    """
    if "law" in described:
        return law_from_dict(described["law"])
    return MementoLaw(markup, Policy(**described["policy"]))


def law_from_dict(stored: Mapping[str, Any]) -> SpecifiedLaw:
    """Return the law that `Law.to_dict` recorded in run.json."""
    return parse_law(stored["spec"], Chat.from_dict(stored["chat"]))
