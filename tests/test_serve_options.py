"""Options of `ghosttrace serve` that are refused before a library is imported. No model and no process."""

import sys
from typing import Any

import pytest

from ghosttrace.cli import serve
from ghosttrace.errors import UserError

OPTIONS: dict[str, Any] = {
    **dict.fromkeys((*serve.SHARED_OPTIONS, *serve.POLICY_OPTIONS)),
    **dict.fromkeys(("backend", "arm", "device", "map_delimiters", "max_block_tokens", "allow_request_arms")),
    "async_scheduling": None,
    "law": None,
    "dry_run": False,
    "model": "toy-open",
    "host": "127.0.0.1",
    "port": 0,
}


@pytest.fixture(autouse=True)
def _nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("uvicorn", "ghosttrace.model.checkpoint", "ghosttrace.serving.vllm.server_command"):
        monkeypatch.setitem(sys.modules, module, None)


def test_an_empty_key_is_refused() -> None:
    """It would look like a key, and protect nothing."""
    with pytest.raises(UserError, match="--api-key is empty"):
        serve.check({**OPTIONS, "api_key": ""})
    serve.check({**OPTIONS, "api_key": "k"})


def test_unknown_arms_are_refused() -> None:
    with pytest.raises(UserError, match="--allow-request-arms must be"):
        serve.check({**OPTIONS, "allow_request_arms": "swap"})


def test_flags_of_vllm_are_refused_by_the_small_server() -> None:
    for options, flags in (({}, ["--tensor-parallel-size"]), ({"reasoning_parser": "qwen3"}, [])):
        with pytest.raises(UserError, match=r"--tensor-parallel-size is for|--reasoning-parser must be"):
            serve.start_builtin_server({**OPTIONS, **options}, flags, backend_chosen=True)


def test_the_device_is_refused_for_vllm() -> None:
    with pytest.raises(UserError, match="--device is for"):
        serve.exec_vllm_server({**OPTIONS, "device": "cpu"}, [])
