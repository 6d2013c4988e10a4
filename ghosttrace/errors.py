"""The exception and the warning that a user is meant to read."""

from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

HUB_ERRORS = (OSError, HTTPError)
"""All that datasets and huggingface_hub raise where something cannot be fetched derives from these."""


class UserError(ValueError):
    """Bad input. The message is one sentence that names the fix; the CLI exits with code 2."""


def check_method(method: object, kind: type, *names: str) -> None:
    """Refuse an arm, attack, defence or probe that is none, or that lacks a field of its class.

    Args:
        method: as the user gave it.
        kind: the class that it must be an object of.
        names: the fields that every class derived from `kind` sets for itself.

    Raises:
        UserError: it is something else, or a field is missing.
    """
    what = kind.__name__.lower()
    if not isinstance(method, kind):
        hint = ": give an object of the class, Name()" if isinstance(method, type) else ""
        raise UserError(f"{method!r} is no {what}{hint or f': give a name, or an object derived from {kind.__name__}'}")
    missing = [name for name in names if not hasattr(method, name)]
    if missing:
        raise UserError(f"the {what} {type(method).__name__} has no {missing[0]}: set it as a field of the class")


class RunWarning(UserWarning):
    """Something about a run that its user should know and that does not stop it."""
