"""Defences: what a deployment can do to the retained cache, one per file."""

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
    defence.name: defence
    for defence in (
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
"""The defences by name."""


def parse_defence(spec: str) -> Defence:
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


__all__ = ["DEFENCES", "Defence", "parse_defence"]
