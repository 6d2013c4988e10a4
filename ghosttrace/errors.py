"""The one exception a user is meant to read."""


class UserError(ValueError):
    """Bad input. The message is one sentence that names the fix; the CLI exits with code 2."""
