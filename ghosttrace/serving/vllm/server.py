"""vLLM's server with erasure: `python -m ghosttrace.serving.vllm.server OUR_FLAGS -- USER_FLAGS`.

vLLM's own parser reads the flags, however they are written: abbreviated, with underscores, or in a file (`--config`).
The result is judged, and vLLM's own command then starts the server.
"""

import os
import runpy
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import distributions

from ghosttrace.errors import UserError
from ghosttrace.serving.api_keys import ApiKeys
from ghosttrace.serving.prompt_guard import GUARD_VARIABLE, GuardSettings
from ghosttrace.serving.vllm.private_api_check import make_server_parser

RESERVED = ("model", "scheduler_cls", "worker_cls", "additional_config", "logits_processors")
"""Arguments that `ghosttrace serve` sets."""

SPECULATIVE = "speculative decoding could erase because of a token that is later rejected"
CONNECTOR = "a KV connector would transfer compacted pages"
OWN_TOKENIZER = "erasure needs the delimiters of the model's own tokenizer"
OWN_TEMPLATE = "erasure needs the assistant's header of the model's own chat template"
OWN_REVISION = "erasure settings, tokenizer and guard are read from the model's default revision"
CONTEXT_PARALLEL = "context parallelism distributes a request's slots over ranks"
NOT_GUARDED = "the prompt guard stands before vLLM's HTTP server in Python only"
REFUSED = {
    "speculative_config": SPECULATIVE,
    "spec_method": SPECULATIVE,
    "spec_model": SPECULATIVE,
    "spec_tokens": SPECULATIVE,
    "kv_transfer_config": CONNECTOR,
    "kv_offloading_size": CONNECTOR,
    "ec_transfer_config": CONNECTOR,
    "tokenizer": OWN_TOKENIZER,
    "tokenizer_mode": OWN_TOKENIZER,
    "tokenizer_revision": OWN_TOKENIZER,
    "skip_tokenizer_init": OWN_TOKENIZER,
    "revision": OWN_REVISION,
    "code_revision": OWN_REVISION,
    "chat_template": OWN_TEMPLATE,
    "trust_request_chat_template": OWN_TEMPLATE,
    "enable_prompt_embeds": "prompt embeddings have no tokens in which blocks can be found",
    "decode_context_parallel_size": CONTEXT_PARALLEL,
    "prefill_context_parallel_size": CONTEXT_PARALLEL,
    "grpc": NOT_GUARDED,
    "grpc_port": NOT_GUARDED,
}
"""Arguments of vLLM's server with which erasure or the guard would be wrong unless they have their default: reasons."""


def read_arguments(own_flags: Sequence[str], user_flags: Sequence[str]) -> Namespace:
    """Return the arguments that vLLM's parser reads from the flags.

    Args:
        own_flags: flags that `ghosttrace serve` sets.
        user_flags: further flags, which may not change them.

    Raises:
        UserError: if an argument is reserved or refused.
    """
    parser = make_server_parser()
    own, arguments = parser.parse_args(list(own_flags)), parser.parse_args([*own_flags, *user_flags])
    for name in RESERVED:
        if getattr(arguments, name) != getattr(own, name) or arguments.model_tag not in (None, own.model_tag):
            raise UserError(f"{_flag(name)} is set by ghosttrace serve: leave it out")
    if arguments.middleware[: len(own.middleware)] != own.middleware:
        raise UserError("--middleware must keep the prompt guard: add yours with a flag, not in a file")
    for name, reason in REFUSED.items():
        if vars(arguments).get(name) != parser.get_default(name):
            raise UserError(f"{reason}: leave out {_flag(name)}")
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") != "0":
        raise UserError(f"{NOT_GUARDED}: unset VLLM_USE_RUST_FRONTEND")
    return arguments


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def guard_with_keys(arguments: Namespace) -> GuardSettings:
    """Return the guard's settings in the environment, with the API keys that vLLM will check."""
    keys = ApiKeys.from_keys(arguments.api_key or [os.environ.get("VLLM_API_KEY", "")])
    return replace(GuardSettings.from_environment(), keys=keys)


def main() -> None:
    """Judge the flags of this process and run vLLM's server."""
    separator = sys.argv.index("--")
    own_flags, user_flags = sys.argv[1:separator], sys.argv[separator + 1 :]
    try:
        arguments = read_arguments(own_flags, user_flags)
        os.environ[GUARD_VARIABLE] = guard_with_keys(arguments).to_json()
    except UserError as error:
        print(f"ghosttrace: {error}", file=sys.stderr)
        sys.exit(2)
    module, *first = server_module()
    sys.argv = [module, *first, *own_flags, *user_flags]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def server_module() -> tuple[str, ...]:
    """Return the module that starts vLLM's server, and its first argument.

    `vllm serve` reads the version of the distribution `vllm`, which the CPU build does not have.
    """
    if any(distributions(name="vllm")):
        return "vllm.entrypoints.cli.main", "serve"
    return ("vllm.entrypoints.launchers.api_server.entry",)


if __name__ == "__main__":
    main()
