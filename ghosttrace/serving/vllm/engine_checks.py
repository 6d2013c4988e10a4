"""Checks when an engine starts: options and caches of vLLM under which erasure would be wrong are refused."""

from typing import Any

from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, MLAAttentionSpec

from ghosttrace.errors import UserError
from ghosttrace.serving.settings import ServingSettings


def check_engine(config: Any, schedules_ahead: bool, settings: ServingSettings) -> None:
    """Refuse engine options under which erasure would be wrong.

    Args:
        config: the configuration of vLLM.
        schedules_ahead: it uses the asynchronous scheduler.
        settings: the law of the engine.

    Raises:
        UserError: one of them is set.
    """
    parallel = config.parallel_config
    contexts = max(parallel.decode_context_parallel_size, getattr(parallel, "prefill_context_parallel_size", 1))
    cache, model = config.cache_config.cache_dtype, config.model_config
    refused = {
        "speculative decoding erases on tokens that may be rejected: leave out the speculative config": (
            config.speculative_config is not None
        ),
        "a KV connector would hand out pages that have been compacted: leave out --kv-transfer-config": (
            config.kv_transfer_config is not None
        ),
        "context parallelism spreads a request's slots over ranks: set its size to 1": contexts > 1,
        f"a cache of {cache} packs or scales its numbers, which were not tried: leave out --kv-cache-dtype": (
            cache not in ("auto", "float16", "bfloat16")
        ),
        "prompt embeddings are no tokens that could tell of blocks: leave out --enable-prompt-embeds": (
            model.enable_prompt_embeds
        ),
        "positions of several dimensions (M-RoPE) were not tried: use a model of text alone": model.uses_mrope,
        "more than two pipeline stages run further ahead than one token: add --no-async-scheduling": (
            schedules_ahead and parallel.pipeline_parallel_size > 2
        ),
        "this law needs the token just written before the next is scheduled: add --no-async-scheduling": (
            schedules_ahead and settings.needs_sampled_token
        ),
    }
    for sentence, wrong in refused.items():
        if wrong:
            raise UserError(sentence)


def check_pages(config: KVCacheConfig) -> None:
    """Refuse caches whose pages are not plain keys and values of every token.

    Raises:
        UserError: sliding windows, latent attention, state-space layers, or several kinds at once.
    """
    specs = [group.kv_cache_spec for group in config.kv_cache_groups]
    plain = [
        isinstance(spec, FullAttentionSpec)
        and not isinstance(spec, MLAAttentionSpec)
        and getattr(spec, "sliding_window", None) is None
        and getattr(spec, "attention_chunk_size", None) is None
        for spec in specs
    ]
    if len(specs) != 1 or not all(plain):
        kinds = ", ".join(sorted({type(spec).__name__ for spec in specs}))
        raise UserError(
            f"this model's cache is of {len(specs)} kinds of pages ({kinds}), and blocks can be erased from full "
            "attention alone: use a model with one kind"
        )
