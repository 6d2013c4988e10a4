"""Checks at the start of an engine: errors for options and caches of vLLM with which erasure would be wrong."""

from typing import Any

from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, MLAAttentionSpec

from ghosttrace.errors import UserError
from ghosttrace.serving.settings import ServingSettings


def check_engine(config: Any, async_scheduling: bool, settings: ServingSettings) -> None:
    """Raise an error if an engine has an option with which erasure would be wrong.

    Args:
        config: the engine's `VllmConfig`.
        async_scheduling: whether the engine uses the asynchronous scheduler.
        settings: erasure settings of the engine.

    Raises:
        UserError: if such an option is set.
    """
    parallel = config.parallel_config
    context_ranks = max(parallel.decode_context_parallel_size, getattr(parallel, "prefill_context_parallel_size", 1))
    cache, model = config.cache_config.cache_dtype, config.model_config
    unsupported = {
        "speculative decoding could erase because of a token that is later rejected: leave out --speculative-config": (
            config.speculative_config is not None
        ),
        "a KV connector would transfer compacted pages: leave out --kv-transfer-config": (
            config.kv_transfer_config is not None
        ),
        "context parallelism distributes a request's slots over ranks: set its size to 1": context_ranks > 1,
        f"erasure is not tested with a cache of dtype {cache}: leave out --kv-cache-dtype": (
            cache not in ("auto", "float16", "bfloat16")
        ),
        "prompt embeddings have no tokens that a law could read: leave out --enable-prompt-embeds": (
            model.enable_prompt_embeds
        ),
        "erasure is not tested with multi-dimensional positions (M-RoPE): use a text-only model": model.uses_mrope,
        "more than two pipeline stages schedule several tokens in advance: add --no-async-scheduling": (
            async_scheduling and parallel.pipeline_parallel_size > 2
        ),
        "these erasure settings depend on the last sampled token: add --no-async-scheduling": (
            async_scheduling and settings.needs_sampled_token
        ),
    }
    for message, is_set in unsupported.items():
        if is_set:
            raise UserError(message)


def check_pages(config: KVCacheConfig) -> None:
    """Raise an error if the pages of a cache do not all hold keys and values of every token.

    Raises:
        UserError: if the cache has sliding windows, latent attention, state-space layers, or several kinds of pages.
    """
    specs = [group.kv_cache_spec for group in config.kv_cache_groups]
    supported = [
        isinstance(spec, FullAttentionSpec)
        and not isinstance(spec, MLAAttentionSpec)
        and getattr(spec, "sliding_window", None) is None
        and getattr(spec, "attention_chunk_size", None) is None
        for spec in specs
    ]
    if len(specs) != 1 or not all(supported):
        kinds = ", ".join(sorted({type(spec).__name__ for spec in specs}))
        raise UserError(
            f"the cache of this model has {len(specs)} kinds of pages ({kinds}), but erasure supports full attention "
            "only: use another model"
        )
