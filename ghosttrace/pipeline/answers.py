"""Questions whose answer is checked: an answer of another form is asked again with what was wrong."""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ghosttrace.pipeline.client import Client, Message
from ghosttrace.pipeline.rows import RowError

Model = TypeVar("Model", bound=BaseModel)
ATTEMPTS = 3
MAX_QUOTED = 2000  # characters of a rejected answer that are shown to the model again


async def ask(
    client: Client,
    stage: str,
    messages: Sequence[Message],
    form: type[Model],
    limit: int,
    check: Callable[[Model], str | None] = lambda _: None,
) -> Model:
    """Ask until the answer has the required form.

    Args:
        client: client of the endpoint.
        stage: the stage that asks.
        messages: the conversation.
        form: the form of the answer.
        limit: maximum number of tokens of the answer.
        check: returns what is wrong with an answer of the right form, or None.

    Raises:
        RowError: no attempt gave such an answer.
    """
    conversation = list(messages)
    wrong = ""
    for _ in range(ATTEMPTS):
        answer = await client.complete(stage, conversation, _schema(form), limit)
        try:
            parsed = form.model_validate(find_json(answer.text))
            wrong = check(parsed) or ""
        except ValueError as error:
            wrong = _describe(error)
        if not wrong:
            return parsed
        if answer.finish_reason == "length":
            wrong += f"; the answer was cut off at {limit} tokens, so write less"
        correction = f"Your answer cannot be used: {wrong}. Answer again, with nothing but the JSON object."
        quoted = {"role": "assistant", "content": answer.text[:MAX_QUOTED] or "(empty)"}
        conversation = [*messages, quoted, {"role": "user", "content": correction}]
    raise RowError(f"unusable answer: after {ATTEMPTS} attempts, {wrong}")


def find_json(text: str) -> Any:
    """Return the first JSON object in a text, after the reasoning of the model if there is any.

    Raises:
        ValueError: there is none, it is nested too deeply, or it holds half a surrogate pair.
    """
    text = text.rpartition("</think>")[2]
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            value = decoder.raw_decode(text, start)[0]
            json.dumps(value, ensure_ascii=False).encode()
            return value
        except json.JSONDecodeError:
            start = text.find("{", start + 1)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
        except UnicodeEncodeError as error:
            raise ValueError("it holds half a surrogate pair, which is not a character") from error
    raise ValueError("it holds no JSON object")


@lru_cache(maxsize=1024)
def _schema(form: type[BaseModel]) -> dict[str, Any]:
    return form.model_json_schema()


def _describe(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'answer'}: {first['msg']}"
