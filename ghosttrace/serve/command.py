"""The command that starts vLLM's own server with everything set."""

import json
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import distributions
from importlib.util import find_spec
from typing import Any

from ghosttrace.checkpoint import load_tokenizer
from ghosttrace.serve.engine import engine
from ghosttrace.serve.guard import VARIABLE, special_tokens
from ghosttrace.serve.settings import KEY, Settings

OWN = ("--model", "--scheduler-cls", "--worker-cls", "--additional-config", "--logits-processors")


def server_command(
    model: str, host: str, port: int, passed_on: Sequence[str], **settings: Any
) -> tuple[list[str], dict[str, str]]:
    """`vllm serve` for a model of ours.

    Args:
        model: a bundled name, a folder or a hub id; also the name that clients ask for.
        host, port: where it listens.
        passed_on: further flags of `vllm serve`.
        settings: of `ghosttrace.serve.engine`.

    Returns:
        The command, and what its environment needs besides.

    Raises:
        UserError: see `engine` and `special_tokens`.
    """
    told = engine(model, **settings)
    tokens = special_tokens(load_tokenizer(model), Settings.from_dict(told["additional_config"][KEY]).markup)
    flags = ["--scheduler-cls", told["scheduler_cls"], "--worker-cls", told["worker_cls"]]
    flags += ["--logits-processors", *told["logits_processors"]]
    flags += ["--additional-config", json.dumps(told["additional_config"])]
    flags += ["--middleware", "ghosttrace.serve.guard.Guard", "--served-model-name", model]
    flags += ["--host", host, "--port", str(port)]
    if told["async_scheduling"] is not None:
        flags.append("--async-scheduling" if told["async_scheduling"] else "--no-async-scheduling")
    together = tempfile.mkdtemp(prefix="ghosttrace-metrics-")  # where every process counts, new for every server
    return [sys.executable, "-m", *_server(), told["model"], *flags, *passed_on], {
        VARIABLE: json.dumps(tokens),
        "PROMETHEUS_MULTIPROC_DIR": together,
    }


def _server() -> tuple[str, ...]:
    """`vllm serve`; that command asks for the version of a package `vllm`, which the CPU build does not call itself."""
    if find_spec("vllm") and not any(distributions(name="vllm")):
        return "vllm.entrypoints.openai.api_server", "--model"
    return "vllm.entrypoints.cli.main", "serve"
