"""Defences: what a deployment might do to the retained cache, chosen by name."""

from ghosttrace.audit.defences.defence import Defence
from ghosttrace.audit.defences.drop_delimiters import DropDelimitersDefence
from ghosttrace.audit.defences.leace import LeaceDefence
from ghosttrace.audit.defences.noise import NoiseDefence
from ghosttrace.audit.defences.none import Undefended
from ghosttrace.audit.defences.partial import Partial
from ghosttrace.audit.defences.random_direction import RandomDirectionDefence
from ghosttrace.audit.defences.restart import RestartDefence, RestartRenumberedDefence
from ghosttrace.audit.defences.scrub import Scrub
from ghosttrace.errors import UserError

DEFENCES: dict[str, type[Defence]] = {
    kind.name: kind
    for kind in (
        Undefended,
        RestartDefence,
        RestartRenumberedDefence,
        Partial,
        Scrub,
        DropDelimitersDefence,
        LeaceDefence,
        RandomDirectionDefence,
        NoiseDefence,
    )
}


def defence(spec: str) -> Defence:
    """A defence as it is given on the command line: its name, and options behind a colon.

    Args:
        spec: such as `restart`, `noise:0.5` or `scrub:2,3`.

    Raises:
        UserError: no such defence, or options that it does not take.
    """
    name, colon, options = spec.partition(":")
    if name not in DEFENCES:
        raise UserError(f"no defence {name!r}: choose from {', '.join(DEFENCES)}")
    return DEFENCES[name].of(options) if colon else DEFENCES[name]()


__all__ = ["DEFENCES", "Defence", "defence"]
