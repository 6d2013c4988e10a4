"""FastAPI application of the small server: `ghosttrace serve --backend hf`.

It provides vLLM's API on top of `ghosttrace.model.generate`, so that erasure can be tried on a laptop: chat and text
completions with or without streaming, separate reasoning and content, per-request overrides, the prompt guard, and
metrics. It decodes one batch after another (`ghosttrace.serving.http.jobs`) and has no prefix cache.
"""

import threading
from collections.abc import Callable
from typing import Any

import fastapi
import prometheus_client
from fastapi import APIRouter, FastAPI, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.serving.error_responses import error_body
from ghosttrace.serving.http.completions import Completions, ServerOptions
from ghosttrace.serving.http.jobs import QueueFullError, decode_forever
from ghosttrace.serving.http.requests import ChatBody, CompletionBody, TextBody
from ghosttrace.serving.open_requests import OpenRequests
from ghosttrace.serving.prompt_guard import GuardSettings, PromptGuard
from ghosttrace.serving.settings import ServingSettings


def make_app(checkpoint: Checkpoint, settings: ServingSettings, options: ServerOptions) -> FastAPI:
    """Return the server's application, and start its decoding thread.

    The caller sets `app.state.server` to the uvicorn server, so that open requests end with it.

    Args:
        checkpoint: the model to serve.
        settings: erasure settings of requests without overrides.
        options: options of the server.

    Raises:
        UserError: if `GuardSettings.for_model` raises it.
    """
    completions = Completions(checkpoint, settings, options)
    app = FastAPI(title="ghosttrace serve", openapi_url=None)
    app.include_router(_routes(completions))
    guard = GuardSettings.for_model(checkpoint.tokenizer, settings, [options.api_key or ""], options.request_arms)
    protect(app, guard)
    for error, status in (
        (UserError, 400),
        (RequestValidationError, 400),
        (QueueFullError, 503),
        (Exception, 500),
    ):
        app.add_exception_handler(error, _error_handler(status))
    app.add_exception_handler(HTTPException, _handle_http_exception)
    threading.Thread(target=decode_forever, args=(checkpoint, completions.queue), daemon=True).start()
    return app


def protect(app: FastAPI, guard: GuardSettings) -> None:
    """Put the prompt guard in front of an application, and in front of it what ends open requests with the server."""
    app.add_middleware(PromptGuard, settings=guard)
    app.add_middleware(OpenRequests)


def _error_handler(status: int) -> Callable[[fastapi.Request, Exception], Response]:
    """Return an exception handler that answers with this HTTP status."""
    return lambda _, error: JSONResponse(error_body(status, _message(error)), status)


def _handle_http_exception(_: fastapi.Request, error: Exception) -> Response:
    """Answer errors of the framework, such as an unknown path, a wrong method or an unreadable body."""
    assert isinstance(error, HTTPException)
    return JSONResponse(error_body(error.status_code, str(error.detail)), error.status_code)


def _message(error: Exception) -> str:
    if isinstance(error, QueueFullError):
        return "the queue is full: try again later"
    if isinstance(error, RequestValidationError):
        return "; ".join(
            f"{'.'.join(map(str, detail['loc'][1:])) or 'body'}: {detail['msg']}" for detail in error.errors()
        )
    return str(error)


def _routes(completions: Completions) -> APIRouter:
    routes, options = APIRouter(), completions.options
    name = options.name

    def wrong_model_response(body: CompletionBody) -> JSONResponse | None:
        known = body.model in (None, name)
        return None if known else JSONResponse(error_body(404, f"there is no model {body.model!r}: use {name}"), 404)

    @routes.post("/v1/chat/completions")
    async def chat(body: ChatBody, http: fastapi.Request) -> Response:
        error = wrong_model_response(body)
        return error or await completions.answer(
            body, [await run_in_threadpool(completions.chat_prompt_ids, body)], http
        )

    @routes.post("/v1/completions")
    async def complete(body: TextBody, http: fastapi.Request) -> Response:
        error = wrong_model_response(body)
        return error or await completions.answer(body, await run_in_threadpool(completions.text_prompt_ids, body), http)

    @routes.get("/v1/models")
    def list_models() -> dict[str, Any]:
        model_card = {"id": name, "object": "model", "owned_by": "ghosttrace", "max_model_len": options.max_model_len}
        return {"object": "list", "data": [model_card]}

    @routes.get("/health")
    def health() -> Response:
        return Response()

    @routes.get("/metrics")
    def show_metrics() -> Response:
        return Response(prometheus_client.generate_latest(), media_type=prometheus_client.CONTENT_TYPE_LATEST)

    return routes
