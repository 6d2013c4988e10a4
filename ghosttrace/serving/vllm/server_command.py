"""The command that starts vLLM's own server with block erasure set up."""

import json
import sys
from collections.abc import Sequence
from importlib.metadata import distributions
from importlib.util import find_spec
from typing import Any

from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import load_tokenizer
from ghosttrace.serving.prompt_guard import TOKENS_VARIABLE, special_tokens
from ghosttrace.serving.settings import CONFIG_KEY, ServingSettings
from ghosttrace.serving.vllm.engine_args import engine_args

RESERVED_FLAGS = ("--model", "--scheduler-cls", "--worker-cls", "--additional-config", "--logits-processors")
"""Flags of `vllm serve` that this command sets."""

REFUSED_FLAGS = {
    "--speculative-config": "tokens that may yet be rejected cannot erase anything",
    "--kv-transfer-config": "pages that have been compacted cannot be handed out",
    "--tokenizer": "the law reads the delimiters from the model's own",
    "--chat-template": "the law reads the assistant's turns from the model's own",
    "--trust-request-chat-template": "the law reads the assistant's turns from the model's own",
    "--enable-prompt-embeds": "embeddings are no tokens that could tell of blocks",
    "--decode-context-parallel-size": "a request's slots cannot be spread over ranks",
    "--prefill-context-parallel-size": "a request's slots cannot be spread over ranks",
}
"""Flags of `vllm serve` under which erasure would be wrong."""


def check_flags(flags: Sequence[str]) -> None:
    """Refuse flags that this command sets itself, and flags under which erasure would be wrong.

    Raises:
        UserError: one of them is among the flags.
    """
    for name in (flag.partition("=")[0].replace("_", "-") for flag in flags):
        if name in RESERVED_FLAGS:
            raise UserError(f"{name} is set by ghosttrace serve: leave it out")
        if name in REFUSED_FLAGS:
            raise UserError(f"{REFUSED_FLAGS[name]}: leave out {name}")


def server_command(
    model: str, host: str, port: int, vllm_flags: Sequence[str], **settings: Any
) -> tuple[list[str], dict[str, str]]:
    """Return the command of `vllm serve` for a model, and what its environment needs besides.

    Args:
        model: a bundled name, a folder or a hub id; also the name that clients ask for.
        host, port: address to listen on.
        vllm_flags: further flags of `vllm serve`.
        settings: of `engine_args`.

    Raises:
        UserError: see `engine_args`, `special_tokens` and `check_flags`.
    """
    check_flags(vllm_flags)
    arguments = engine_args(model, **settings)
    settings_dict = arguments["additional_config"]
    tokens = special_tokens(load_tokenizer(model), ServingSettings.from_dict(settings_dict[CONFIG_KEY]).markup)
    flags = ["--scheduler-cls", arguments["scheduler_cls"], "--worker-cls", arguments["worker_cls"]]
    flags += ["--logits-processors", *arguments["logits_processors"]]
    flags += ["--additional-config", json.dumps(settings_dict)]
    flags += ["--middleware", "ghosttrace.serving.prompt_guard.PromptGuard", "--served-model-name", model]
    flags += ["--host", host, "--port", str(port)]
    if arguments["async_scheduling"] is not None:
        flags.append("--async-scheduling" if arguments["async_scheduling"] else "--no-async-scheduling")
    command = [sys.executable, "-m", *_server_module(), arguments["model"], *flags, *vllm_flags]
    return command, {TOKENS_VARIABLE: json.dumps(tokens)}


def _server_module() -> tuple[str, ...]:
    """Return the module and arguments of `vllm serve`.

    That command asks for the version of a package called `vllm`, which the CPU build is not.
    """
    if find_spec("vllm") and not any(distributions(name="vllm")):
        return "vllm.entrypoints.openai.api_server", "--model"
    return "vllm.entrypoints.cli.main", "serve"
