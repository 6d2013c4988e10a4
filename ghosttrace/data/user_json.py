"""JSON that a user wrote."""

import json
from typing import Any

from ghosttrace.errors import UserError


def parse_json(text: str, where: str) -> Any:
    """A JSON value whose strings can be tokenised and written to a file.

    Args:
        text: one value.
        where: its place, for the message.

    Raises:
        UserError: it is not JSON, is nested too deeply, or holds half a surrogate pair.
    """
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise UserError(f"{where} is nested too deeply: write flat JSON objects") from error
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} holds half a surrogate pair such as \\ud800: remove it, it is no character"
        ) from error
    except ValueError as error:  # also for a number of more digits than Python reads
        said = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise UserError(
            f"{where} is not valid JSON ({said}): write one object, or one a line in a .jsonl file"
        ) from error
    return value
