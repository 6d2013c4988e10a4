"""Exception and warning classes whose messages are written for the user."""

from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

HUB_ERRORS = (OSError, HTTPError)
"""Base classes of every error that datasets and huggingface_hub raise if a download fails."""


class UserError(ValueError):
    """Invalid input. The message is one sentence that names the fix; the command line exits with code 2."""


def check_method(method: object, base: type, *required_fields: str) -> None:
    """Check that a user's arm, attack, defence or probe is an object of the right class with all required fields.

    Args:
        method: the object that the user passed.
        base: the class that it must derive from: `Arm`, `Attack`, `Defence` or `Probe`.
        required_fields: names of the fields that every class derived from `base` must set.

    Raises:
        UserError: the object does not derive from `base`, or a field is missing.
    """
    noun = base.__name__.lower()
    if not isinstance(method, base):
        if isinstance(method, type):
            hint = "give an object of the class, Name()"
        else:
            hint = f"give a name, or an object of a class derived from {base.__name__}"
        raise UserError(f"{method!r} is no {noun}: {hint}")
    missing = [name for name in required_fields if not hasattr(method, name)]
    if missing:
        raise UserError(f"the {noun} {type(method).__name__} has no {missing[0]}: set it as a field of the class")


class RunWarning(UserWarning):
    """A problem with a run that does not stop it."""
