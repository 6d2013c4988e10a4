"""Defences: what a deployment might do to the retained cache, one a file."""

from ghosttrace.auditing.defences.defence import Defence
from ghosttrace.auditing.defences.drop_delimiters import DropDelimitersDefence
from ghosttrace.auditing.defences.leace import LeaceDefence
from ghosttrace.auditing.defences.noise import NoiseDefence
from ghosttrace.auditing.defences.none import NoDefence
from ghosttrace.auditing.defences.partial import PartialDefence
from ghosttrace.auditing.defences.random_direction import RandomDirectionDefence
from ghosttrace.auditing.defences.restart import RestartDefence, RestartRenumberedDefence
from ghosttrace.auditing.defences.scrub import ScrubDefence
from ghosttrace.errors import UserError

DEFENCES: dict[str, type[Defence]] = {
    kind.name: kind
    for kind in (
        NoDefence,
        RestartDefence,
        RestartRenumberedDefence,
        PartialDefence,
        ScrubDefence,
        DropDelimitersDefence,
        LeaceDefence,
        RandomDirectionDefence,
        NoiseDefence,
    )
}
"""The defences that can be asked for by name."""


def parse_defence(spec: str) -> Defence:
    """A defence as it is given on the command line: its name, and options after a colon.

    Args:
        spec: such as `restart`, `noise:0.5` or `scrub:2,3`.

    Raises:
        UserError: no such defence, or options that it does not take.
    """
    name, colon, options = spec.partition(":")
    if name not in DEFENCES:
        raise UserError(f"no defence {name!r}: choose from {', '.join(DEFENCES)}")
    return DEFENCES[name].of(options) if colon else DEFENCES[name]()


__all__ = ["DEFENCES", "Defence", "parse_defence"]
