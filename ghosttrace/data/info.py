"""Descriptions of models and traces for `ghosttrace info`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedConfig

from ghosttrace.data.chats import ChatMessages
from ghosttrace.data.read import TraceText, tokenize_trace
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import NEVER, MementoLaw, Policy, alive, expiry
from ghosttrace.law.law import Erasure, Law
from ghosttrace.law.markup import DELIMITERS, Markup, find_blocks
from ghosttrace.model.checkpoint import load_config, load_tokenizer
from ghosttrace.model.erasure_config import CONFIG_KEY, recorded_law, recorded_policy, resolve_policy
from ghosttrace.model.geometry import CacheGeometry


@dataclass(frozen=True)
class ModelInfo:
    """Description of a model, read without loading its weights.

    Attributes:
        name: bundled name, folder or hub id.
        family: the model type in transformers; None without a config.json.
        geometry: shape of the KV cache; None without a config.json.
        dtype: data type of the stored weights; None without a config.json.
        delimiters: token id by delimiter token; None for tokens that the tokenizer lacks.
        policy: the expiry policy in effect; None if `mask_delimiters` is neither recorded nor given.
        recorded_policy: the policy recorded in the checkpoint, if any.
        law: the specification of another law than Memento's recorded in the checkpoint, if any.
        tokenizer: the tokenizer, with missing delimiters added at the end of the vocabulary, as training adds them.
        names: the delimiter tokens, by the names in `DELIMITERS`.
        stages: the recorded stages of its training.
    """

    name: str
    family: str | None
    geometry: CacheGeometry | None
    dtype: torch.dtype | None
    delimiters: dict[str, int | None]
    policy: Policy | None
    recorded_policy: dict[str, Any] | None
    tokenizer: Any
    names: dict[str, str]
    stages: tuple[str, ...] = ()
    law: str | None = None

    @property
    def bytes_per_token(self) -> int | None:
        """Bytes of the KV cache per retained token; None if the geometry is unknown."""
        return None if self.geometry is None else self.geometry.bytes_per_token(self.dtype or torch.float32)


@dataclass(frozen=True)
class TraceInfo:
    """Description of a trace and of the erasures in it.

    Attributes:
        tokens: number of tokens of prompt and response.
        blocks: one row per finished block, with the number of tokens of block and memento, the token index at which
            the block expires, and the number of KV tokens held just before and after. Under another law than
            Memento's, one row per erasure, with its first key and the number of carriers.
        kv_tokens_held: int64[T], number of KV tokens held at each step.
        law: specification of the law.
    """

    tokens: int
    blocks: pd.DataFrame
    kv_tokens_held: np.ndarray
    law: str = "memento"


def model_info(name: str, delimiters: Mapping[str, str] | None = None, **policy: Any) -> ModelInfo:
    """Describe a model without loading its weights.

    Args:
        name: a bundled name, a folder (config.json may be missing), or a hub id.
        delimiters: other spellings of the delimiters, by the names in `DELIMITERS`.
        policy: fields of `Policy` that replace recorded ones; None keeps the recorded value.

    Raises:
        UserError: there is no such model, or the policy contradicts its record.
    """
    folder = Path(name)
    tokenizer_only = folder.is_dir() and not (folder / "config.json").exists() and (folder / "tokenizer.json").exists()
    config: PreTrainedConfig | None = None if tokenizer_only else load_config(name)
    tokenizer = load_tokenizer(name)
    record = getattr(config, CONFIG_KEY, None) or {}
    names = {key: f"<|{key}|>" for key in DELIMITERS} | record.get("delimiters", {}) | dict(delimiters or {})
    recorded = recorded_policy(config) if config else None
    undecided = "mask_delimiters" not in (recorded or {}) and policy.get("mask_delimiters") is None
    vocabulary = tokenizer.get_vocab()
    token_ids = {token: vocabulary.get(token) for token in names.values()}
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [token for token, index in token_ids.items() if index is None]}
    )
    return ModelInfo(
        name=name,
        family=config.model_type if config else None,
        geometry=CacheGeometry.from_config(config) if config else None,
        dtype=stored_dtype(config) if config else None,
        delimiters=token_ids,
        policy=None if undecided else resolve_policy(recorded, **policy),
        recorded_policy=recorded,
        tokenizer=tokenizer,
        names=names,
        stages=tuple(record.get("stages", ())),
        law=recorded_law(config) if config else None,
    )


def stored_dtype(config: PreTrainedConfig) -> torch.dtype:
    """Return the data type that the weights of a checkpoint are stored in."""
    stored = config.get_text_config().dtype or torch.float32
    return getattr(torch, stored) if isinstance(stored, str) else stored


def trace_info(model: ModelInfo, trace: TraceText | ChatMessages, law: Law | Policy) -> TraceInfo:
    """Tokenise a trace and find its erasures.

    Args:
        model: provides tokenizer and chat template.
        trace: text with delimiters in Memento's spelling.
        law: which tokens leave the cache and when; a policy stands for Memento's law.

    Raises:
        UserError: the tokenizer has no chat template.
    """
    if not model.tokenizer.chat_template:
        raise UserError(
            f"{model.name} has no chat template, so the assistant's turn cannot be found: add chat_template.jinja"
        )
    if isinstance(law, Policy):
        law = MementoLaw(Markup.from_tokenizer(model.tokenizer, model.names), law)
    ids = [token for part in tokenize_trace(trace, model.tokenizer, model.family, model.names) for token in part]
    times = expiry(ids, law)
    rows = block_rows(ids, times, law) if isinstance(law, MementoLaw) else erasure_rows(ids, times, law)
    return TraceInfo(len(ids), pd.DataFrame(rows), alive(times), law.spec)


def block_rows(ids: Sequence[int], times: np.ndarray, law: MementoLaw) -> list[dict[str, int | None]]:
    """Return one row per finished block.

    Args:
        ids: token ids.
        times: int64[T], their expiry.
        law: Memento's law.
    """
    rows: list[dict[str, int | None]] = []
    erasure_of_block = {erasure.block: erasure for erasure in law.erasures(ids)}
    for number, block in enumerate(find_blocks(ids, law.markup, law.policy.require_assistant_section)):
        erasure = erasure_of_block.get(block)
        row: dict[str, int | None] = {"block": number, "block_tokens": block.end - block.start - 1}
        row |= {"memento_tokens": block.memento_end - block.memento_start - 1}
        row |= {"erased_at": None, "erased_keys": 0, "held_before": None, "held_after": None}
        rows.append(row if erasure is None else row | _erased(erasure, times))
    return rows


def erasure_rows(ids: Sequence[int], times: np.ndarray, law: Law) -> list[dict[str, int | None]]:
    """Return one row per erasure of a law that has no blocks.

    Args:
        ids: token ids.
        times: int64[T], their expiry.
        law: the law.
    """
    rows: list[dict[str, int | None]] = []
    for number, erasure in enumerate(law.erasures(ids)):
        carriers = erasure.carriers
        retained = int((times[carriers.start : carriers.stop] > erasure.expires_at).sum())
        row: dict[str, int | None] = {"erasure": number, "first_key": int(erasure.keys[0]), "carriers": retained}
        rows.append(row | _erased(erasure, times))
    return rows


def _erased(erasure: Erasure, times: np.ndarray) -> dict[str, int | None]:
    """Return the columns of an erasure."""
    held_before = int(alive(times)[erasure.expires_at - 1])
    num_expired = int(((times == erasure.expires_at) & (times < NEVER)).sum())
    row: dict[str, int | None] = {"erased_at": erasure.expires_at, "erased_keys": len(erasure.keys)}
    return row | {"held_before": held_before, "held_after": held_before - num_expired}
