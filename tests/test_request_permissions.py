"""The operator's permissions: what a request may choose, and where the server says so."""

import json
from dataclasses import replace
from typing import Any

import prometheus_client
import pytest
from helpers.asgi import CHAT, send_request

from ghosttrace.errors import UserError
from ghosttrace.serving.prompt_guard import GuardSettings
from ghosttrace.serving.request_permissions import RequestPermissions, parse_request_arms

SEALED = RequestPermissions("restart", 0, False, None)
MEMENTO = RequestPermissions("memento", 1, False, 50, ("restart",))
OPEN = replace(SEALED, request_arms=("full", "memento"))
WINDOW = replace(SEALED, keep_last_n_blocks=-1, law="window:64,16")


@pytest.mark.parametrize(
    "permissions, overrides, permitted",
    [
        (SEALED, {}, True),
        (SEALED, {"arm": "restart", "keep_last_n_blocks": 0, "keep_last_block_for_answer": 0}, True),
        (SEALED, {"max_block_tokens": 7}, True),
        (SEALED, {"arm": "memento"}, False),
        (SEALED, {"arm": "full"}, False),
        (SEALED, {"arm": "restart-renumbered"}, False),
        (SEALED, {"keep_last_n_blocks": 1}, False),
        (SEALED, {"keep_last_n_blocks": -1}, False),
        (SEALED, {"keep_last_block_for_answer": 1}, False),
        (MEMENTO, {"arm": "restart", "keep_last_n_blocks": 0, "max_block_tokens": 50}, True),
        (MEMENTO, {"keep_last_n_blocks": 1}, True),
        (MEMENTO, {"keep_last_n_blocks": 2}, False),
        (MEMENTO, {"keep_last_n_blocks": -1}, False),
        (MEMENTO, {"max_block_tokens": 51}, False),
        (replace(MEMENTO, keep_last_n_blocks=-1), {"keep_last_n_blocks": 9}, True),
        (OPEN, {"arm": "memento", "keep_last_n_blocks": -1, "keep_last_block_for_answer": 1}, True),
        (OPEN, {"arm": "placebo"}, False),
        (WINDOW, {"arm": "restart"}, True),
        (WINDOW, {"arm": "memento"}, False),
        (replace(WINDOW, request_arms=("full",)), {"arm": "full"}, True),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_request_chooses_only_what_the_operator_permits(
    permissions: RequestPermissions, overrides: dict[str, Any], permitted: bool, path: str
) -> None:
    xargs = {f"ghosttrace_{name}": value for name, value in overrides.items()} | {"other": 1}
    seen = send_request(GuardSettings(("<eos>",), permissions), {"prompt": "1", "vllm_xargs": xargs}, path)
    assert (seen.status, seen.received is not None) == ((200, True) if permitted else (400, False))
    assert permitted or b"not permitted by this server" in seen.answer


@pytest.mark.parametrize("name", ["keep_last_n_blocks", "max_block_tokens"])
@pytest.mark.parametrize("value", [2**31, 10**300], ids=["33 bits", "huge"])
def test_integers_of_overrides_fit_into_32_bits(name: str, value: int) -> None:
    xargs = {f"ghosttrace_{name}": value}
    seen = send_request(GuardSettings(("<eos>",), OPEN), {"vllm_xargs": xargs}, CHAT)
    assert seen.status == 400 and b"must be" in seen.answer and len(seen.answer) < 400


def test_the_last_of_two_equal_names_counts_for_guard_and_application() -> None:
    body = b'{"vllm_xargs": {}, "vllm_xargs": {"ghosttrace_arm": "restart"}, "vllm_xargs": {"x": 1}}'
    assert send_request(GuardSettings(("<eos>",), SEALED), body).received == b'{"vllm_xargs": {"x": 1}}'


@pytest.mark.parametrize(
    "body, message",
    [
        ({"use_beam_search": True, "vllm_xargs": {"ghosttrace_arm": "restart"}}, "use_beam_search ignores"),
        ({"kv_transfer_params": {"prompt_token_ids": [1, 2]}}, "kv_transfer_params may replace the prompt"),
        ({"ec_transfer_params": {}}, "ec_transfer_params"),
        ({"prompt_embeds": "x"}, "prompt_embeds"),
        ({"use_beam_search": True, "vllm_xargs": {"other": 1}}, None),
        ({"use_beam_search": False, "vllm_xargs": {"ghosttrace_arm": "restart"}}, None),
        ({"kv_transfer_params": None}, None),
    ],
)
def test_parameters_that_evade_erasure_are_refused(body: dict[str, Any], message: str | None) -> None:
    seen = send_request(GuardSettings(("<eos>",), SEALED), body)
    assert seen.status == (200 if message is None else 400) and (message or "").encode() in seen.answer


def test_formats_of_the_answer_get_no_invisible_character() -> None:
    schema = {"enum": ["<", "a<e"]}
    body = {"structured_outputs": {"choice": ["<", "<eos>"]}, "response_format": {"schema": schema}, "stop": ["<"]}
    settings = GuardSettings(("<eos>",), SEALED)
    assert send_request(settings, body).json == body
    assert "<eos>" not in str(send_request(settings, {"response_format": {"schema": "<eos>"}}).json)


def test_tokenize_reads_a_text_as_completions_do() -> None:
    settings = GuardSettings(("<eos>",), SEALED)
    for path in ("/tokenize", "/v1/completions"):
        assert send_request(settings, {"prompt": "<eos>"}, path).json == {"prompt": "<eos>"}
    typed = {"messages": [{"role": "user", "content": "<eos>"}]}
    assert send_request(settings, typed, "/tokenize").json == send_request(settings, typed).json != typed


@pytest.mark.parametrize(
    "permissions, sealed",
    [
        (SEALED, True),
        (MEMENTO, False),
        (OPEN, False),
        (replace(SEALED, request_arms=("restart-renumbered",)), True),
        (replace(SEALED, keep_last_n_blocks=-1), False),
        (WINDOW, True),
        (replace(WINDOW, arm="memento"), False),
        (replace(WINDOW, law="none"), False),
    ],
)
def test_the_server_says_whether_it_is_sealed(permissions: RequestPermissions, sealed: bool) -> None:
    listed = {"object": "list", "data": [{"id": "a"}, {"id": "b"}]}
    settings = GuardSettings(("<eos>",), permissions)
    asked = {"method": "GET", "reply": listed}
    told = json.loads(send_request(settings, path="/v1/models", **asked).answer)
    assert told == json.loads(send_request(settings, path="/proxy/v1/models", root_path="/proxy", **asked).answer)
    said = {"law": permissions.law, "arm": permissions.arm, "sealed": sealed}
    said |= {"request_arms": list(permissions.request_arms)}
    said |= {"keep_last_n_blocks": permissions.keep_last_n_blocks} if permissions.law == "memento" else {}
    assert told["data"] == [{"id": "a", "ghosttrace": said}, {"id": "b", "ghosttrace": said}]
    labels = {"arm": permissions.arm, "request_arms": ",".join(permissions.request_arms)}
    assert prometheus_client.REGISTRY.get_sample_value("ghosttrace:sealed", labels) == sealed


@pytest.mark.parametrize("name", ["keep_last_n_blocks", "keep_last_block_for_answer", "max_block_tokens"])
def test_overrides_about_blocks_are_refused_under_another_law(name: str) -> None:
    xargs = {f"ghosttrace_{name}": 1}
    for permissions in (WINDOW, replace(WINDOW, request_arms=("full",))):
        seen = send_request(GuardSettings(("<eos>",), permissions), {"vllm_xargs": xargs}, CHAT)
        assert seen.status == 400 and b"is about blocks, which the law of this server does not know" in seen.answer


def test_list_of_arms() -> None:
    assert parse_request_arms(None) == () and parse_request_arms("restart, full") == ("full", "restart")
    with pytest.raises(UserError, match="--allow-request-arms must be a list of full"):
        parse_request_arms("swap")
