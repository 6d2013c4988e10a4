"""Arguments that set block erasure up in vLLM: `LLM(**engine_args("toy-open"))`."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import load_config, load_tokenizer, read_erasure_config, resolve_pretrained_path
from ghosttrace.model.geometry import CacheGeometry
from ghosttrace.serving.paging import RECOMPUTING_ARMS, PagedArm
from ghosttrace.serving.settings import CONFIG_KEY, ServingSettings


def read_settings(
    model: str,
    delimiters: Mapping[str, str] | None = None,
    arm: PagedArm | None = None,
    max_block_tokens: int | None = None,
    **policy: Any,
) -> ServingSettings:
    """Read the law of a model, without loading its weights.

    Args:
        model: a bundled name, a folder or a hub id.
        delimiters: other spellings of the delimiter tokens.
        arm: how blocks leave; by default `restart` for a model whose last training was sealed, else `memento`.
        max_block_tokens: `<|block_end|>` is forced after this many tokens of a block.
        policy: fields of `Policy` that override what the model records.

    Raises:
        UserError: the model, its delimiters, its policy or its assistant's header is missing, or its cache cannot be
            compacted.
    """
    config, tokenizer = load_config(model), load_tokenizer(model)
    check_layers(model, config)
    markup, law, stages = read_erasure_config(model, config, tokenizer, delimiters, **policy)
    return ServingSettings(
        markup, law, arm or ("restart" if stages[-1:] == ("sealed",) else "memento"), max_block_tokens
    )


def check_layers(model: str, config: PreTrainedConfig) -> None:
    """Refuse models whose cache vLLM does not hold in plain pages of every token.

    Raises:
        UserError: latent attention, sliding windows, or layers of another kind.
    """
    text = config.get_text_config()
    others = set(getattr(text, "layer_types", None) or ()) - {"full_attention"}
    if getattr(text, "kv_lora_rank", None):
        others.add("latent attention")
    if any(window is not None for window in CacheGeometry.from_config(config).windows):
        others.add("sliding windows")
    if others:
        raise UserError(
            f"{model} has {', '.join(sorted(others))}, and vLLM's pages can be erased from full attention alone: "
            "use a model without, or ghosttrace ablate without --backend vllm"
        )


def engine_args(model: str, async_scheduling: bool | None = None, **settings: Any) -> dict[str, Any]:
    """Return arguments for vLLM's `LLM` or `AsyncEngineArgs`.

    Args:
        model: a bundled name, a folder or a hub id.
        async_scheduling: schedule a step ahead of its tokens; by default where that is exact and vLLM supports it.
        settings: see `read_settings`.

    Raises:
        UserError: see `read_settings`; or asynchronous scheduling where it would be too late.
    """
    law = read_settings(model, **settings)
    if async_scheduling and law.needs_sampled_token:
        raise UserError(f"{law.arm} with this policy needs the token just written: leave out async_scheduling")
    ahead = False if law.needs_sampled_token else async_scheduling
    kind = "Recomputing" if law.arm in RECOMPUTING_ARMS else "" if ahead is False else "Async"
    return {
        "model": resolve_pretrained_path(model),
        "scheduler_cls": "ghosttrace.serving.vllm.scheduler.make_scheduler",
        "worker_cls": "ghosttrace.serving.vllm.worker.ErasingWorker",
        "logits_processors": [f"ghosttrace.serving.vllm.forced_tokens:ForcedTokens{kind}"],
        "async_scheduling": ahead,
        "additional_config": {CONFIG_KEY: law.to_dict()},
    }
