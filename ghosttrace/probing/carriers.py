"""Carriers: the retained tokens that a probe reads, by their distance from the tokens that were erased.

Under Memento's law the distance is counted in block-memento pairs. Under any other law it is counted in turns of the
chat, or in tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ghosttrace.data.task import Sample
from ghosttrace.errors import UserError
from ghosttrace.law.chat import Chat
from ghosttrace.law.expiry import MementoLaw, expiry
from ghosttrace.law.law import Erasure, Law
from ghosttrace.law.markup import Block, find_blocks
from ghosttrace.law.tools import Tools
from ghosttrace.law.turns import find_turns

if TYPE_CHECKING:
    from ghosttrace.model.checkpoint import Checkpoint

CarrierKind = Literal["memento", "delimiters", "block", "turn", "after", "last", "secret"]
MEMENTO_CARRIERS: tuple[CarrierKind, ...] = ("memento", "delimiters", "block")
OTHER_CARRIERS: tuple[CarrierKind, ...] = ("delimiters", "turn", "after", "last")
CARRIERS: tuple[CarrierKind, ...] = ("memento", "delimiters", "block", "turn", "after", "last")  # `secret` is a control
AFTER_TOKENS = 8  # tokens of the carrier `after` at one hop
Pooling = int | Literal["all", "mean"]


@dataclass(frozen=True)
class Carrier:
    """Some retained tokens of a trace.

    Attributes:
        kind: Under Memento's law `memento`, the memento with `<|summary_start|>` and `<|summary_end|>`; `delimiters`,
            `<|block_start|>` and `<|block_end|>`; or `block`, the text between those two. Under any other law
            `delimiters`, the tokens that open and close a turn or a tool result; `turn`, all retained tokens of a turn;
            `after`, the next `AFTER_TOKENS` retained tokens after the erased ones; or `last`, the last token of the
            trace. Under all laws `secret`, the tokens that spell the secret, before they are erased.
        hop: Distance from the secret, in block-memento pairs, in turns, or in groups of `AFTER_TOKENS` tokens. Hop 0
            is the pair, the turn or the group next to the erased tokens. The states at hop -1 precede the secret and
            cannot depend on it.
        pool: `all` concatenates the states of all tokens, and every trace must have the same number of
            them; an integer n concatenates those of the last n tokens; `mean` averages over tokens.
    """

    kind: CarrierKind
    hop: int = 0
    pool: Pooling = "all"

    @property
    def name(self) -> str:
        """The kind, followed by the pooling unless that is `all`: `memento`, `memento/mean`."""
        return self.kind if self.pool == "all" else f"{self.kind}/{self.pool}"

    @property
    def key(self) -> str:
        """The prefix of the carrier's tensor names in a shard: `memento.0`."""
        return f"{self.name}.{self.hop}"

    def token_indices(self, parts: "TraceParts") -> np.ndarray:
        """Return the token indices of the carrier in one trace, int64[P], ascending; empty if the trace has none."""
        if self.kind == "secret":
            indices = np.array(parts.sample.secret_indices, dtype=np.int64)
        else:
            indices = np.asarray(parts.find(self.kind, self.hop), dtype=np.int64)
        return indices[-self.pool :] if isinstance(self.pool, int) else indices


@dataclass(frozen=True)
class TraceParts(ABC):
    """One trace with a secret, divided into the parts in which carriers are counted.

    Attributes:
        sample: The trace.
    """

    sample: Sample

    @abstractmethod
    def find(self, kind: CarrierKind, hop: int) -> Sequence[int] | np.ndarray:
        """Return the token indices of a carrier, ascending; empty if the trace has no such carrier."""

    @property
    @abstractmethod
    def last_hop(self) -> int:
        """The largest hop at which the trace has carriers that are counted in pairs or turns."""


@dataclass(frozen=True)
class MementoParts(TraceParts):
    """The finished block-memento pairs of a trace.

    Attributes:
        blocks: The pairs, in order.
    """

    blocks: Sequence[Block]

    def find(self, kind: CarrierKind, hop: int) -> Sequence[int] | np.ndarray:
        number = self.sample.block + hop
        if not 0 <= number < len(self.blocks):
            return ()
        block = self.blocks[number]
        if kind == "memento":
            return range(block.memento_start, block.memento_end + 1)
        return (block.start, block.end) if kind == "delimiters" else range(block.start + 1, block.end)

    @property
    def last_hop(self) -> int:
        return len(self.blocks) - 1 - self.sample.block


@dataclass(frozen=True)
class ChatParts(TraceParts):
    """The turns of a chat, or a plain text without turns, under another law than Memento's.

    Attributes:
        turns: Token indices of each turn.
        delimiters: bool[T], the tokens that open and close turns and tool results.
        retained: bool[T], the tokens that stay when the secret has left, or that come later.
        erased: Token indices from the first to the last token that leaves together with the secret.
    """

    turns: Sequence[range]
    delimiters: np.ndarray
    retained: np.ndarray
    erased: range

    def find(self, kind: CarrierKind, hop: int) -> Sequence[int] | np.ndarray:
        retained = np.flatnonzero(self.retained)
        if kind in ("after", "last"):
            before, after = retained[retained < self.erased.start], retained[retained >= self.erased.stop]
            if kind == "last":
                return (before if hop < 0 else after)[-1:]
            return before[-AFTER_TOKENS:] if hop < 0 else after[hop * AFTER_TOKENS : (hop + 1) * AFTER_TOKENS]
        number = self.sample.block + hop
        if not 0 <= number < len(self.turns):
            return ()
        turn = self.turns[number]
        begin = max(turn.start, self.sample.secret_indices[-1] + 1) if hop >= 0 else turn.start
        inside = retained[(retained >= begin) & (retained < turn.stop)]
        return inside[self.delimiters[inside]] if kind == "delimiters" else inside

    @property
    def last_hop(self) -> int:
        return len(self.turns) - 1 - self.sample.block


def divide(checkpoint: "Checkpoint", samples: Sequence[Sample]) -> list[TraceParts]:
    """Divide traces into the parts in which carriers are counted under the law of a checkpoint."""
    law = checkpoint.law
    if isinstance(law, MementoLaw):
        section = law.policy.require_assistant_section
        return [MementoParts(sample, find_blocks(sample.ids, law.markup, section)) for sample in samples]
    return [chat_parts(law, checkpoint.chat, sample) for sample in samples]


def chat_parts(law: Law, chat: Chat, sample: Sample) -> ChatParts:
    """Divide one trace under another law than Memento's; `chat` holds the tokens of the chat format."""
    ids, secret = np.asarray(sample.ids, dtype=np.int64), np.array(sample.secret_indices)
    times = expiry(ids, law)
    held_secret = [keys for keys in map(_keys, law.erasures(ids)) if np.isin(secret, keys).any()]
    erased = np.concatenate(held_secret) if held_secret else secret
    stretch = range(int(erased.min()), int(erased.max()) + 1)
    return ChatParts(sample, find_turns(ids, chat), np.isin(ids, chat.delimiters), times > times[secret].max(), stretch)


def _keys(erasure: Erasure) -> np.ndarray:
    return np.asarray(erasure.keys, dtype=np.int64)


def secret_carrier(samples: Sequence[Sample]) -> Carrier:
    """Return the carrier of the secret's own tokens, pooled by mean if their number differs between samples."""
    return Carrier("secret", 0, "all" if len({len(sample.secret_indices) for sample in samples}) == 1 else "mean")


def default_carriers(checkpoint: "Checkpoint") -> tuple[CarrierKind, ...]:
    """Return the carriers that are probed by default under the law of a checkpoint."""
    if isinstance(checkpoint.law, MementoLaw):
        return ("memento",)
    return ("delimiters", "after") if isinstance(checkpoint.law, Tools) else ("after",)


def check_carriers(kinds: Sequence[CarrierKind], checkpoint: "Checkpoint") -> None:
    """Check that the law of a checkpoint knows these carriers, and retains them.

    Raises:
        UserError: it does not.
    """
    law = checkpoint.law
    known = MEMENTO_CARRIERS if isinstance(law, MementoLaw) else OTHER_CARRIERS
    for kind in kinds:
        if kind not in known:
            raise UserError(f"the law {law.spec} has no carrier {kind!r}: choose --carriers from {', '.join(known)}")
    if isinstance(law, MementoLaw) and law.policy.mask_delimiters and "delimiters" in kinds:
        raise UserError(
            "no trace keeps its delimiters under this policy: load a model that was trained with --keep-delimiters, "
            "or remove delimiters from --carriers"
        )


def padded_token_indices(carrier: Carrier, traces: Sequence[TraceParts]) -> tuple[np.ndarray, np.ndarray]:
    """Return the token indices and pooling weights of a carrier in N traces, padded to one length.

    Args:
        carrier: The carrier.
        traces: N traces, see `divide`.

    Returns:
        Token indices, int64[N, P], and their weights, float32[N, P]. A weight is 1, or 1 / count if the carrier
        is pooled by mean, and 0 for padding.

    Raises:
        UserError: A trace has no such carrier, or the carrier is not pooled and its length differs between traces.
    """
    indices = [carrier.token_indices(trace) for trace in traces]
    counts = np.array([len(row) for row in indices])
    if not counts.any():
        last = max(trace.last_hop for trace in traces)
        raise UserError(f"no trace has {carrier.kind} tokens at hop {carrier.hop}: give hops up to {last}")
    if not counts.all():
        lacking = traces[int(np.argmin(counts))].sample.base
        raise UserError(
            f"trace {lacking} has no {carrier.kind} tokens at hop {carrier.hop}: remove the trace or the hop"
        )
    width = int(counts.max())
    if carrier.pool != "mean" and counts.min() < width:
        raise UserError(
            f"{carrier.name} at hop {carrier.hop} has {counts.min()} tokens in one trace and {width} in another: "
            f"pool them with --pool mean or --pool {counts.min()}"
        )
    padded = np.stack([np.pad(row, (0, width - len(row)), mode="edge") for row in indices])
    inside = np.arange(width) < counts[:, None]
    weights = inside / counts[:, None] if carrier.pool == "mean" else inside
    return padded, weights.astype(np.float32)
