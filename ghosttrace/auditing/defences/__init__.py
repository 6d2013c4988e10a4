"""Defences: what a deployment can do to the retained cache, one per file."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ghosttrace.errors import UserError
from ghosttrace.lazy import LazyClasses, attribute_loader

if TYPE_CHECKING:
    from ghosttrace.auditing.defences.defence import Defence

DEFENCES: "Mapping[str, type[Defence]]" = LazyClasses(
    __name__,
    {
        "none": "none.NoDefence",
        "restart": "restart.RestartDefence",
        "restart-renumbered": "restart.RestartRenumberedDefence",
        "partial": "partial.PartialDefence",
        "scrub": "scrub.ScrubDefence",
        "drop-delimiters": "drop_delimiters.DropDelimitersDefence",
        "leace": "leace.LeaceDefence",
        "random-direction": "random_direction.RandomDirectionDefence",
        "noise": "noise.NoiseDefence",
    },
)
"""The defences by name."""


def parse_defence(spec: str) -> "Defence":
    """Parse a defence as given on the command line.

    Args:
        spec: Name of the defence, with its options after a colon, such as `restart`, `noise:0.5` or `scrub:2,3`.

    Raises:
        UserError: The defence is unknown or does not accept the options.
    """
    name, colon, options = spec.partition(":")
    if name not in DEFENCES:
        raise UserError(f"no defence {name!r}: choose from {', '.join(DEFENCES)}")
    return DEFENCES[name].from_options(options) if colon else DEFENCES[name]()


__getattr__ = attribute_loader(__name__, __file__)

__all__ = ["DEFENCES", "Defence", "parse_defence"]
