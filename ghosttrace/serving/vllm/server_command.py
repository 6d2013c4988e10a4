"""Command that starts vLLM's own server with erasure."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from ghosttrace.model.checkpoint import load_tokenizer
from ghosttrace.serving.paging import PagedArm
from ghosttrace.serving.prompt_guard import GUARD_VARIABLE, GuardSettings
from ghosttrace.serving.reasoning_split import check_parser
from ghosttrace.serving.settings import CONFIG_KEY, ServingSettings
from ghosttrace.serving.vllm.engine_args import engine_args


def server_command(
    model: str,
    host: str,
    port: int,
    vllm_flags: Sequence[str],
    request_arms: Sequence[PagedArm] = (),
    **settings: Any,
) -> tuple[list[str], dict[str, str]]:
    """Return the command that starts `vllm serve` for a model, and its additional environment variables.

    Args:
        model: bundled name, folder or hub id; also the name of the model in requests.
        host: address to listen on.
        port: port to listen on.
        vllm_flags: additional flags of `vllm serve`.
        request_arms: arms that a request may choose instead of the server's.
        settings: keyword arguments of `engine_args`.

    Raises:
        UserError: if `engine_args`, `check_parser` or `GuardSettings.for_model` raises it.
    """
    arguments = engine_args(model, **settings)
    settings_dict = arguments["additional_config"]
    serving_settings = ServingSettings.from_dict(settings_dict[CONFIG_KEY])
    for flag in vllm_flags:
        check_parser(flag, serving_settings.markup)
    guard = GuardSettings.for_model(load_tokenizer(model), serving_settings, [], request_arms)
    flags = ["--scheduler-cls", arguments["scheduler_cls"], "--worker-cls", arguments["worker_cls"]]
    flags += ["--logits-processors", *arguments["logits_processors"]]
    flags += ["--additional-config", json.dumps(settings_dict)]
    flags += ["--middleware", "ghosttrace.serving.prompt_guard.PromptGuard"]
    flags += ["--middleware", "ghosttrace.serving.open_requests.OpenRequests", "--served-model-name", model]
    flags += ["--host", host, "--port", str(port)]
    if arguments["async_scheduling"] is not None:
        flags.append("--async-scheduling" if arguments["async_scheduling"] else "--no-async-scheduling")
    own_flags = ["--model", arguments["model"], *flags]
    command = [sys.executable, "-m", "ghosttrace.serving.vllm.server", *own_flags, "--", *vllm_flags]
    return command, {GUARD_VARIABLE: guard.to_json()}
