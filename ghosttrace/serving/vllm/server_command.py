"""Command that starts vLLM's own server with block erasure."""

import json
import sys
from collections.abc import Sequence
from importlib.metadata import distributions
from importlib.util import find_spec
from typing import Any

from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import load_tokenizer
from ghosttrace.serving.paging import PagedArm
from ghosttrace.serving.prompt_guard import GUARD_VARIABLE, GuardSettings
from ghosttrace.serving.settings import CONFIG_KEY, ServingSettings
from ghosttrace.serving.vllm.engine_args import engine_args

RESERVED_FLAGS = ("--model", "--scheduler-cls", "--worker-cls", "--additional-config", "--logits-processors")
"""Flags of `vllm serve` that `ghosttrace serve` sets."""

REFUSED_FLAGS = {
    "--speculative-config": "speculative decoding could erase because of a token that is later rejected",
    "--kv-transfer-config": "a KV connector would transfer compacted pages",
    "--tokenizer": "erasure needs the delimiters of the model's own tokenizer",
    "--chat-template": "erasure needs the assistant's header of the model's own chat template",
    "--trust-request-chat-template": "erasure needs the assistant's header of the model's own chat template",
    "--enable-prompt-embeds": "prompt embeddings have no tokens in which blocks can be found",
    "--decode-context-parallel-size": "context parallelism distributes a request's slots over ranks",
    "--prefill-context-parallel-size": "context parallelism distributes a request's slots over ranks",
}
"""Flags of `vllm serve` with which erasure would be wrong, and the reason."""


def check_flags(flags: Sequence[str]) -> None:
    """Raise an error if flags for `vllm serve` contain a reserved or unsupported flag.

    Raises:
        UserError: if a flag is in `RESERVED_FLAGS` or `REFUSED_FLAGS`.
    """
    for name in (flag.partition("=")[0].replace("_", "-") for flag in flags):
        if name in RESERVED_FLAGS:
            raise UserError(f"{name} is set by ghosttrace serve: leave it out")
        if name in REFUSED_FLAGS:
            raise UserError(f"{REFUSED_FLAGS[name]}: leave out {name}")


def server_command(
    model: str,
    host: str,
    port: int,
    vllm_flags: Sequence[str],
    api_keys: Sequence[str] = (),
    request_arms: Sequence[PagedArm] = (),
    **settings: Any,
) -> tuple[list[str], dict[str, str]]:
    """Return the command that starts `vllm serve` for a model, and its additional environment variables.

    Args:
        model: bundled name, folder or hub id; also the name of the model in requests.
        host: address to listen on.
        port: port to listen on.
        vllm_flags: additional flags of `vllm serve`.
        api_keys: keys of which clients must send one; vLLM checks them too, and must get them in its own flags.
        request_arms: arms that a request may choose instead of the server's.
        settings: keyword arguments of `engine_args`.

    Raises:
        UserError: if `engine_args`, `GuardSettings.for_model` or `check_flags` raises it.
    """
    check_flags(vllm_flags)
    arguments = engine_args(model, **settings)
    settings_dict = arguments["additional_config"]
    serving_settings = ServingSettings.from_dict(settings_dict[CONFIG_KEY])
    guard = GuardSettings.for_model(load_tokenizer(model), serving_settings, api_keys, request_arms)
    flags = ["--scheduler-cls", arguments["scheduler_cls"], "--worker-cls", arguments["worker_cls"]]
    flags += ["--logits-processors", *arguments["logits_processors"]]
    flags += ["--additional-config", json.dumps(settings_dict)]
    flags += ["--middleware", "ghosttrace.serving.prompt_guard.PromptGuard", "--served-model-name", model]
    flags += ["--host", host, "--port", str(port)]
    if arguments["async_scheduling"] is not None:
        flags.append("--async-scheduling" if arguments["async_scheduling"] else "--no-async-scheduling")
    command = [sys.executable, "-m", *_server_module(), arguments["model"], *flags, *vllm_flags]
    return command, {GUARD_VARIABLE: guard.to_json()}


def _server_module() -> tuple[str, ...]:
    """Return the module and arguments that start vLLM's server.

    `vllm serve` reads the version of the distribution `vllm`, which the CPU build does not have.
    """
    if find_spec("vllm") and not any(distributions(name="vllm")):
        return "vllm.entrypoints.openai.api_server", "--model"
    return "vllm.entrypoints.cli.main", "serve"
