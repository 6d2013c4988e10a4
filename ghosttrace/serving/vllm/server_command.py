"""The command that starts vLLM's own server with everything set."""

import json
import sys
from collections.abc import Sequence
from importlib.metadata import distributions
from importlib.util import find_spec
from typing import Any

from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import load_tokenizer
from ghosttrace.serving.guard import VARIABLE, special_tokens
from ghosttrace.serving.settings import KEY, Settings
from ghosttrace.serving.vllm.engine import engine

OWN = ("--model", "--scheduler-cls", "--worker-cls", "--additional-config", "--logits-processors")

REFUSED = {
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
    """Refuse what this command sets itself, and what does not go with erasure.

    Raises:
        UserError: one of them is among the flags.
    """
    for name in (flag.partition("=")[0].replace("_", "-") for flag in flags):
        if name in OWN:
            raise UserError(f"{name} is set by ghosttrace serve: leave it out")
        if name in REFUSED:
            raise UserError(f"{REFUSED[name]}: leave out {name}")


def server_command(
    model: str, host: str, port: int, passed_on: Sequence[str], **settings: Any
) -> tuple[list[str], dict[str, str]]:
    """`vllm serve` for a model of ours.

    Args:
        model: a bundled name, a folder or a hub id; also the name that clients ask for.
        host, port: where it listens.
        passed_on: further flags of `vllm serve`.
        settings: of `ghosttrace.serving.vllm.engine`.

    Returns:
        The command, and what its environment needs besides.

    Raises:
        UserError: see `engine`, `special_tokens` and `check_flags`.
    """
    check_flags(passed_on)
    told = engine(model, **settings)
    tokens = special_tokens(load_tokenizer(model), Settings.from_dict(told["additional_config"][KEY]).markup)
    flags = ["--scheduler-cls", told["scheduler_cls"], "--worker-cls", told["worker_cls"]]
    flags += ["--logits-processors", *told["logits_processors"]]
    flags += ["--additional-config", json.dumps(told["additional_config"])]
    flags += ["--middleware", "ghosttrace.serving.guard.Guard", "--served-model-name", model]
    flags += ["--host", host, "--port", str(port)]
    if told["async_scheduling"] is not None:
        flags.append("--async-scheduling" if told["async_scheduling"] else "--no-async-scheduling")
    return [sys.executable, "-m", *_server(), told["model"], *flags, *passed_on], {VARIABLE: json.dumps(tokens)}


def _server() -> tuple[str, ...]:
    """`vllm serve`; that command asks for the version of a package `vllm`, which the CPU build does not call itself."""
    if find_spec("vllm") and not any(distributions(name="vllm")):
        return "vllm.entrypoints.openai.api_server", "--model"
    return "vllm.entrypoints.cli.main", "serve"
