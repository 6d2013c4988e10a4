"""`info`: what a model is, and what the law erases from a trace."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedConfig

from ghosttrace.data.read import TraceText, tokenize_trace
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import NEVER, Policy, alive, erasures, expiry
from ghosttrace.law.markup import DELIMITERS, Markup, find_blocks
from ghosttrace.model.checkpoint import CONFIG_KEY, load_config, load_tokenizer, recorded_policy
from ghosttrace.model.geometry import CacheGeometry


@dataclass(frozen=True)
class ModelInfo:
    """What can be said of a model without loading its weights.

    Attributes:
        family: transformers' model type; None where there is no config.json.
        geometry, dtype: sizes of the cache; None where there is no config.json.
        delimiters: each delimiter's spelling and id, None where the tokenizer lacks it.
        policy: as recorded with the checkpoint, if it is.
        stages: of its training, as far as they are recorded.
        tokenizer: with missing delimiters added at the end, as training would add them.
    """

    name: str
    family: str | None
    geometry: CacheGeometry | None
    dtype: torch.dtype | None
    delimiters: dict[str, int | None]
    policy: dict[str, Any] | None
    tokenizer: Any
    names: dict[str, str]
    stages: tuple[str, ...] = ()

    @property
    def bytes_per_token(self) -> int | None:
        """KV bytes that one retained token takes."""
        return None if self.geometry is None else self.geometry.bytes_per_token(self.dtype or torch.float32)


@dataclass(frozen=True)
class TraceInfo:
    """What the law does to one trace.

    Attributes:
        tokens: length of prompt and response.
        blocks: one row a finished block: tokens of block and memento, the step at which it expires,
            KV tokens held just before and after.
        kv_tokens_held: int64[T], KV tokens held at each step.
    """

    tokens: int
    blocks: pd.DataFrame
    kv_tokens_held: np.ndarray


def model_info(name: str, delimiters: Mapping[str, str] | None = None) -> ModelInfo:
    """Describe a bundled model, a folder (config.json may be missing) or a hub id.

    Raises:
        UserError: there is no such model.
    """
    folder = Path(name)
    bare = folder.is_dir() and not (folder / "config.json").exists() and (folder / "tokenizer.json").exists()
    config: PreTrainedConfig | None = None if bare else load_config(name)
    tokenizer = load_tokenizer(name)
    record = getattr(config, CONFIG_KEY, None) or {}
    names = {key: f"<|{key}|>" for key in DELIMITERS} | record.get("delimiters", {}) | dict(delimiters or {})
    vocabulary = tokenizer.get_vocab()
    found = {token: vocabulary.get(token) for token in names.values()}
    tokenizer.add_special_tokens({"additional_special_tokens": [t for t, i in found.items() if i is None]})
    return ModelInfo(
        name=name,
        family=config.model_type if config else None,
        geometry=CacheGeometry.from_config(config) if config else None,
        dtype=stored_dtype(config) if config else None,
        delimiters=found,
        policy=recorded_policy(config) if config else None,
        tokenizer=tokenizer,
        names=names,
        stages=tuple(record.get("stages", ())),
    )


def stored_dtype(config: PreTrainedConfig) -> torch.dtype:
    """The number format that a checkpoint is stored in."""
    stored = config.get_text_config().dtype or torch.float32
    return getattr(torch, stored) if isinstance(stored, str) else stored


def trace_info(model: ModelInfo, trace: TraceText, policy: Policy) -> TraceInfo:
    """Read a trace by the law.

    Args:
        model: whose tokenizer and chat template to use.
        trace: delimiters spelled as Memento spells them.
        policy: when blocks expire.

    Raises:
        UserError: the tokenizer has no chat template.
    """
    if not model.tokenizer.chat_template:
        raise UserError(
            f"{model.name} has no chat template, so the assistant's turn cannot be told: add chat_template.jinja"
        )
    ids = [token for part in tokenize_trace(trace, model.tokenizer, model.family, model.names) for token in part]
    markup = Markup.from_tokenizer(model.tokenizer, model.names)
    times = expiry(ids, markup, policy)
    held = alive(times)
    rows = []
    expiring = {erasure.block: erasure for erasure in erasures(ids, markup, policy)}
    for number, block in enumerate(find_blocks(ids, markup, policy.require_assistant_section)):
        gone = expiring.get(block)
        row: dict[str, int | None] = {"block": number, "block_tokens": block.end - block.start - 1}
        row |= {"memento_tokens": block.memento_end - block.memento_start - 1}
        row |= {"erased_at": None, "erased_keys": 0, "held_before": None, "held_after": None}
        if gone is not None:
            row |= {"erased_at": gone.expires_at, "erased_keys": len(gone.keys)}
            row |= {"held_before": int(held[gone.expires_at - 1])}
            row |= {"held_after": int(held[gone.expires_at - 1] - ((times == gone.expires_at) & (times < NEVER)).sum())}
        rows.append(row)
    return TraceInfo(len(ids), pd.DataFrame(rows), held)
