"""The exception and the warning that a user is meant to read."""

from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

HUB_ERRORS = (OSError, HTTPError)
"""All that datasets and huggingface_hub raise where something cannot be fetched derives from these."""


class UserError(ValueError):
    """Bad input. The message is one sentence that names the fix; the CLI exits with code 2."""


class RunWarning(UserWarning):
    """Something about a run that its user should know and that does not stop it."""
