"""Arguments of vLLM's `LLM` that enable erasure: `LLM(**engine_args("toy-open"))`."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from ghosttrace.errors import UserError
from ghosttrace.law.chat import Chat
from ghosttrace.law.parse import MEMENTO, is_memento, parse_law
from ghosttrace.model.checkpoint import load_config, load_tokenizer, resolve_pretrained_path
from ghosttrace.model.erasure_config import read_block_config, read_erasure_config, recorded_law
from ghosttrace.model.geometry import CacheGeometry
from ghosttrace.serving.paging import RECOMPUTING_ARMS, PagedArm
from ghosttrace.serving.settings import CONFIG_KEY, ServingSettings


def read_settings(
    model: str,
    delimiters: Mapping[str, str] | None = None,
    arm: PagedArm | None = None,
    max_block_tokens: int | None = None,
    law: str | None = None,
    **policy: Any,
) -> ServingSettings:
    """Return the erasure settings of a model, without loading its weights.

    Args:
        model: bundled name, folder or hub id.
        delimiters: token of each delimiter whose spelling is not `<|name|>`, by name.
        arm: how tokens are erased; by default `restart` if the model's last training stage was `sealed`, else
            `memento`.
        max_block_tokens: number of tokens in a block after which `<|block_end|>` is forced; None for no limit.
        law: specification of a law, such as `window:64,16`, that replaces the recorded one.
        policy: fields of `Policy` that override those in the model's config; only under Memento's law.

    Raises:
        UserError: if the model, its delimiters, its policy or its assistant's header is missing, vLLM does not store
            its cache in plain pages, or the law cannot be served.
    """
    config, tokenizer = load_config(model), load_tokenizer(model)
    check_layers(model, config)
    spec = str(law or recorded_law(config) or MEMENTO)
    if is_memento(spec):
        other_law = None
        markup, resolved, stages = read_erasure_config(model, config, tokenizer, delimiters, **policy)
    else:
        other_law = parse_law(spec, Chat.from_tokenizer(tokenizer))
        markup, resolved, stages = read_block_config(spec, config, tokenizer, delimiters, **policy)
    default_arm: PagedArm = "restart" if stages[-1:] == ("sealed",) else "memento"
    return ServingSettings(markup, resolved, arm or default_arm, max_block_tokens, other_law=other_law)


def check_layers(model: str, config: PreTrainedConfig) -> None:
    """Raise an error if vLLM does not store the model's cache in pages with keys and values of every token.

    Args:
        model: name of the model for the error message.
        config: config of the model.

    Raises:
        UserError: if the model has latent attention, sliding windows, or layers other than full attention.
    """
    text_config = config.get_text_config()
    unsupported = set(getattr(text_config, "layer_types", None) or ()) - {"full_attention"}
    if getattr(text_config, "kv_lora_rank", None):
        unsupported.add("latent attention")
    if any(window is not None for window in CacheGeometry.from_config(config).windows):
        unsupported.add("sliding windows")
    if unsupported:
        raise UserError(
            f"{model} has {', '.join(sorted(unsupported))}, but erasure in vLLM supports full attention only: use "
            "another model, or ghosttrace ablate without --backend vllm"
        )


def engine_args(model: str, async_scheduling: bool | None = None, **settings: Any) -> dict[str, Any]:
    """Return the arguments of vLLM's `LLM` or `AsyncEngineArgs` that enable erasure.

    Args:
        model: bundled name, folder or hub id.
        async_scheduling: whether to schedule a step before the previous step's tokens are known; by default, vLLM
            decides if the settings permit it.
        settings: keyword arguments of `read_settings`.

    Raises:
        UserError: if `read_settings` raises it, or the settings do not permit `async_scheduling`.
    """
    serving_settings = read_settings(model, **settings)
    if async_scheduling and serving_settings.needs_sampled_token:
        raise UserError(
            f"the arm {serving_settings.arm} with this law depends on the last sampled token: leave out "
            "async_scheduling"
        )
    scheduling = False if serving_settings.needs_sampled_token else async_scheduling
    recomputes = serving_settings.arm in RECOMPUTING_ARMS
    variant = "Recomputing" if recomputes else "" if scheduling is False else "Async"
    variant += "" if serving_settings.other_law is None else "OtherLaw"
    return {
        "model": resolve_pretrained_path(model),
        "scheduler_cls": "ghosttrace.serving.vllm.scheduler.make_scheduler",
        "worker_cls": "ghosttrace.serving.vllm.worker.ErasingWorker",
        "logits_processors": [f"ghosttrace.serving.vllm.forced_tokens:ForcedTokens{variant}"],
        "async_scheduling": scheduling,
        "additional_config": {CONFIG_KEY: serving_settings.to_dict()},
    }
