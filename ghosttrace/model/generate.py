"""Batched decoding with streaming, and the KV tokens that each response held."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import ExpiryTracker, Policy
from ghosttrace.law.law import Law
from ghosttrace.law.markup import Markup
from ghosttrace.model.attention import attending
from ghosttrace.model.sampling import Sampling, random_stream, sample
from ghosttrace.model.session import Eraser, Row, Session

REFILL_STEPS = 2
"""Cost of a refill in decoding steps: the prefill of few short prompts, and copying the cache."""


@dataclass(frozen=True)
class Request:
    """A prompt to be continued.

    Attributes:
        prompt: token ids of the prompt.
        key: key of the stream of random numbers, e.g. (seed, problem, repetition); the same key gives the same
            uniform draws under every arm.
        harness: function called before every token; it returns a token id to force, or None to sample.
    """

    prompt: Sequence[int]
    key: tuple[int, ...] = (0,)
    harness: Callable[[ExpiryTracker], int | None] | None = None


@dataclass(frozen=True)
class Generation:
    """A finished response.

    Attributes:
        prompt, tokens: token ids of the prompt and of the response.
        finish_reason: `eos`, or `length` if the response was truncated.
        blocks: number of finished block-memento pairs, including those of the prompt.
        kv_tokens: int64[T - 1], number of keys held while each token of prompt and response was processed (the last
            token is never processed).
        forced: whether each token of the response was forced by the harness or by a block's maximum length. Empty if
            the engine does not record it.
        log_probs: log-probability of each token of the response in nats, at the sampling temperature, before top-k,
            top-p and min-p. Empty unless asked for.
    """

    prompt: list[int]
    tokens: list[int]
    finish_reason: Literal["eos", "length"]
    blocks: int
    kv_tokens: np.ndarray
    forced: tuple[bool, ...] = ()
    log_probs: tuple[float, ...] = ()

    @property
    def peak_kv_tokens(self) -> int:
        """Maximum number of keys held at once."""
        return int(self.kv_tokens.max())

    @property
    def auc_kv_tokens(self) -> int:
        """Sum of the keys held over all steps of the response, in token-steps."""
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
    law: Law | None = None,
    log_probs: bool = False,
    rows: int | None = None,
) -> list[Generation]:
    """Decode requests together; every row evicts keys at its own times and leaves the batch when it is finished.

    With `rows`, the next requests, in order, take the places of finished rows. They wait until the steps of the free
    rows add up to the cost of a refill (`REFILL_STEPS`), which depends on the responses alone: the same requests make
    the same batches. Responses do not depend on `rows`, but for the last bits of floating-point results.

    Args:
        model: any causal transformers model whose attention uses `AttentionInterface`.
        requests: the requests.
        markup: token ids of the delimiters and of the assistant header.
        policy: when blocks expire.
        sampling: sampling settings; generation stops at the model's `eos_token_id`.
        eraser: creates the `Eraser` that acts when tokens expire (see `ghosttrace.ablation.arms`).
        on_token: called with (request number, token id) for each new response token.
        on_done: called with (request number, generation) as soon as a response is finished.
        law: another law than Memento's; `markup` and `policy` then only count blocks.
        log_probs: whether to record the log-probabilities of the response tokens.
        rows: maximum number of requests decoded at once; None for all of them.

    Returns:
        One `Generation` per request, in order.

    Raises:
        UserError: a prompt is empty, `rows` is below 1, or the law replays recorded tokens only.
    """
    _check(requests, law, rows)
    if not requests:
        return []
    stops, waiting = stop_ids(model), WaitingRequests(deque(range(len(requests))), rows or len(requests))
    streams = [random_stream(*request.key) for request in requests]
    done: dict[int, Generation] = {}
    records: list[tuple[list[bool], list[float]]] = [([], []) for _ in requests]  # forced, log-probability

    def prefill(numbers: Sequence[int]) -> Session:
        session = Session(model, markup, policy, [requests[number].key for number in numbers], eraser, law)
        session.advance([requests[number].prompt for number in numbers])
        return session

    with attending(model):
        numbers = waiting.take(busy=0)
        session = prefill(numbers)
        while numbers:
            uniform = np.array([streams[number].random() for number in numbers])
            tokens = sample(session.logits, sampling, uniform)
            unfinished = []
            for row_index, number in enumerate(numbers):
                row, request = session.rows[row_index], requests[number]
                forced = _forced_token(row.tracker, request, sampling, markup)
                tokens[row_index] = token = tokens[row_index] if forced is None else forced
                records[number][0].append(forced is not None)
                if log_probs:
                    records[number][1].append(log_prob(session.logits[row_index], token, sampling))
                if on_token:
                    on_token(number, token)
                truncated = len(row.tokens) - len(request.prompt) + 1 >= sampling.max_new_tokens
                if token not in stops and not truncated:
                    unfinished.append(row_index)
                    continue
                done[number] = _finish(row, request, token, "eos" if token in stops else "length", records[number])
                if on_done:
                    on_done(number, done[number])
            if unfinished and len(unfinished) < len(numbers):
                session.select(unfinished)
            numbers, tokens = [numbers[index] for index in unfinished], [tokens[index] for index in unfinished]
            if numbers:
                session.advance([[token] for token in tokens])
            if newcomers := waiting.take(busy=len(numbers)):
                prefilled = prefill(newcomers)  # in a cache of its own: the other rows need no padding
                if numbers:
                    session.join(prefilled)
                else:
                    session = prefilled
                numbers += newcomers
    return [done[number] for number in range(len(requests))]


def _check(requests: Sequence[Request], law: Law | None, rows: int | None) -> None:
    """Raise a `UserError` if these requests cannot be decoded under this law, so many at once."""
    if not all(len(request.prompt) for request in requests):
        raise UserError("a prompt is empty: give at least one token to continue")
    if rows is not None and rows < 1:
        raise UserError(f"rows must be at least 1, not {rows}")
    if law is not None and law.replayed:
        raise UserError(f"{law.spec} replays recorded tokens and cannot generate: measure it with ghosttrace bits")


@dataclass
class WaitingRequests:
    """Requests that wait for a free row.

    Attributes:
        numbers: numbers of the requests, in order.
        rows: maximum number of requests decoded at once.
        idle_steps: steps that free rows have missed since the last refill, summed over these rows.
    """

    numbers: deque[int]
    rows: int
    idle_steps: int = 0

    def take(self, busy: int) -> list[int]:
        """Return the numbers of the requests to start now, given the number of rows in use; called once per step.

        A refill costs every busy row some steps, whether it fills one row or many. The total cost is lowest if it takes
        place when free rows have lost as much by waiting.
        """
        free = min(self.rows - busy, len(self.numbers))
        self.idle_steps += free
        if busy and self.idle_steps < REFILL_STEPS * self.rows:
            return []
        self.idle_steps = 0
        return [self.numbers.popleft() for _ in range(free)]


def stop_ids(model: PreTrainedModel) -> set[int]:
    """Return the token ids that end a response."""
    ids = model.generation_config.eos_token_id
    ids = model.config.get_text_config().eos_token_id if ids is None else ids
    return set() if ids is None else {ids} if isinstance(ids, int) else set(ids)


def _forced_token(tracker: ExpiryTracker, request: Request, sampling: Sampling, markup: Markup) -> int | None:
    """Return the token to emit instead of sampling: the block's end at its maximum length, or the harness's token."""
    limit = sampling.max_block_tokens
    if limit is not None and tracker.block_tracker.in_block and tracker.block_tracker.block_tokens >= limit:
        return markup.block_end
    return request.harness(tracker) if request.harness else None


def log_prob(logits: Tensor, token: int, sampling: Sampling) -> float:
    """Return the log-probability of a token, in nats; greedy decoding counts as temperature 1."""
    return float((logits.float() / (sampling.temperature or 1.0)).log_softmax(-1)[token])


def _finish(
    row: Row,
    request: Request,
    token: int,
    finish_reason: Literal["eos", "length"],
    record: tuple[list[bool], list[float]],
) -> Generation:
    response = [*row.tokens[len(request.prompt) :], token]
    held, (forced, log_probs) = np.array(row.kv_tokens), record
    blocks = len(row.tracker.blocks)
    return Generation(list(request.prompt), response, finish_reason, blocks, held, tuple(forced), tuple(log_probs))
