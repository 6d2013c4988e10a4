"""Rows of training data that hold token ids, and the error for rows that cannot be trained on."""

from collections.abc import Mapping
from typing import Any

from ghosttrace.training.examples import IGNORE_INDEX


class RowError(Exception):
    """Row that cannot be trained on; the message is `category: details`, and the report counts rows by category."""


def read_token_ids(record: Mapping[str, Any], vocabulary: int) -> tuple[list[int], list[int]]:
    """Return the token ids and labels of a row of token ids.

    Args:
        record: mapping with `input_ids`, and `labels` unless all tokens carry loss.
        vocabulary: token ids must be below this number.

    Raises:
        RowError: if the columns have other types, lengths or values.
    """
    tokens, labels = record["input_ids"], record.get("labels", record["input_ids"])
    if not is_int_list(tokens) or not is_int_list(labels) or len(tokens) != len(labels):
        raise RowError("broken ids: input_ids and labels must be lists of integers of equal length")
    outside = next((token for token in tokens if not 0 <= token < vocabulary), None)
    if outside is not None:
        raise RowError(f"ids outside the vocabulary: found {outside}, ids must be from 0 to {vocabulary - 1}")
    if any(label not in (IGNORE_INDEX, token) for token, label in zip(tokens, labels, strict=True)):
        raise RowError(
            "misplaced labels: a label must be the input id at the same index or -100, because the trainer shifts them"
        )
    return list(tokens), list(labels)


def is_int_list(value: Any) -> bool:
    """Return whether a value is a list of integers; booleans do not count as integers."""
    return isinstance(value, list) and all(type(item) is int for item in value)
