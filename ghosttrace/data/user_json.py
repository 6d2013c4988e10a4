"""Parsing of JSON files written by users."""

import json
from typing import Any

from ghosttrace.errors import UserError


def parse_json(text: str, location: str) -> Any:
    """Parse a JSON value and check that its strings can be encoded as UTF-8.

    Args:
        text: one JSON value.
        location: file and line of the text, for error messages.

    Raises:
        UserError: the text is not JSON, is nested too deeply, or holds half a surrogate pair.
    """
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise UserError(f"{location} is nested too deeply: write flat JSON objects") from error
    except UnicodeEncodeError as error:
        raise UserError(
            f"{location} holds half a surrogate pair such as \\ud800, which is not a character: remove it"
        ) from error
    except ValueError as error:  # also raised for integers with more digits than Python parses
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise UserError(
            f"{location} is not valid JSON ({reason}): write one object, or one per line in a .jsonl file"
        ) from error
    return value
