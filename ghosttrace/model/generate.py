"""Batched decoding, streaming, and what a response cost in KV tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from transformers import PreTrainedModel

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import ExpiryTracker, Policy
from ghosttrace.law.markup import Markup
from ghosttrace.model.attention import attending
from ghosttrace.model.sampling import Sampling, random_stream, sample
from ghosttrace.model.session import Eraser, Row, Session


@dataclass(frozen=True)
class Request:
    """A prompt to be continued.

    Attributes:
        prompt: token ids.
        key: what its randomness belongs to, e.g. (seed, problem, repetition); the same key draws
            the same noise under every arm.
        harness: asked before every token for one to put in; None lets the model choose.
    """

    prompt: Sequence[int]
    key: tuple[int, ...] = (0,)
    harness: Callable[[ExpiryTracker], int | None] | None = None


@dataclass(frozen=True)
class Generation:
    """A finished response.

    Attributes:
        prompt, tokens: token ids of the prompt and of the response.
        finish_reason: `eos`, or `length` if it was truncated.
        blocks: finished block-memento pairs, the prompt's included.
        kv_tokens: int64[T - 1], keys held while each token of prompt and response was processed (the
            last token never is).
    """

    prompt: list[int]
    tokens: list[int]
    finish_reason: Literal["eos", "length"]
    blocks: int
    kv_tokens: np.ndarray

    @property
    def peak_kv_tokens(self) -> int:
        """The most keys held at once."""
        return int(self.kv_tokens.max())

    @property
    def auc_kv_tokens(self) -> int:
        """The area under the response's part of the curve, in token-steps."""
        return int(self.kv_tokens[len(self.prompt) :].sum())


def generate(
    model: PreTrainedModel,
    requests: Sequence[Request],
    markup: Markup,
    policy: Policy,
    sampling: Sampling,
    eraser: Callable[[Session], Eraser] = Eraser,
    on_token: Callable[[int, int], None] | None = None,
    on_done: Callable[[int, Generation], None] | None = None,
) -> list[Generation]:
    """Decode a batch; every row evicts at its own times and leaves the batch when it is done.

    Args:
        model: any causal model of transformers whose attention is a function of its interface.
        requests: the batch.
        markup, policy: the law.
        sampling: how tokens are chosen; where to stop is the model's own `eos_token_id`.
        eraser: what happens when blocks expire (see `ghosttrace.ablation.arms`).
        on_token: called with (request number, token id) for each response token, as it comes.
        on_done: called with (request number, its generation) as soon as that response is finished.

    Returns:
        One `Generation` a request, in order.

    Raises:
        UserError: a prompt is empty.
    """
    if not requests:
        return []
    if not all(len(request.prompt) for request in requests):
        raise UserError("a prompt is empty: give at least one token to continue")
    stops = stop_ids(model)
    streams = [random_stream(*request.key) for request in requests]
    done: dict[int, Generation] = {}
    with attending(model):
        session = Session(model, markup, policy, [request.key for request in requests], eraser)
        session.advance([request.prompt for request in requests])
        numbers = list(range(len(requests)))
        while numbers:
            drawn = np.array([streams[number].random() for number in numbers])
            tokens = sample(session.logits, sampling, drawn)
            going = []
            for place, number in enumerate(numbers):
                row, request = session.rows[place], requests[number]
                forced = _forced(row.tracker, request, sampling, markup)
                tokens[place] = token = tokens[place] if forced is None else forced
                if on_token:
                    on_token(number, token)
                full = len(row.tokens) - len(request.prompt) + 1 >= sampling.max_new_tokens
                if token not in stops and not full:
                    going.append(place)
                    continue
                done[number] = _finish(row, request, token, "eos" if token in stops else "length")
                if on_done:
                    on_done(number, done[number])
            if going and len(going) < len(numbers):
                session.select(going)
            numbers, tokens = [numbers[place] for place in going], [tokens[place] for place in going]
            if numbers:
                session.advance([[token] for token in tokens])
    return [done[number] for number in range(len(requests))]


def stop_ids(model: PreTrainedModel) -> set[int]:
    """The tokens that end a response."""
    ids = model.generation_config.eos_token_id
    ids = model.config.get_text_config().eos_token_id if ids is None else ids
    return set() if ids is None else {ids} if isinstance(ids, int) else set(ids)


def _forced(tracker: ExpiryTracker, request: Request, sampling: Sampling, markup: Markup) -> int | None:
    cap = sampling.max_block_tokens
    if cap is not None and tracker.block_tracker.in_block and tracker.block_tracker.block_tokens >= cap:
        return markup.block_end
    return request.harness(tracker) if request.harness else None


def _finish(row: Row, request: Request, token: int, finish: Literal["eos", "length"]) -> Generation:
    response = [*row.tokens[len(request.prompt) :], token]
    return Generation(list(request.prompt), response, finish, len(row.tracker.blocks), np.array(row.kv_tokens))
