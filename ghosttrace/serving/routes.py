"""Routes of both servers: which are answered, to whom, and what a request without a key can cause.

Every other route is closed: a route of a later vLLM is answered 404 until it is listed here. A test compares the list
with the installed vLLM.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ghosttrace.serving.error_responses import RefusedRequestError

Access = Literal["everyone", "key", "nobody"]
WITHOUT_KEY: dict[Access, str] = {
    "everyone": "the same: no model, no body, a constant amount of work",
    "key": "401 before the body is read",
    "nobody": "404 or 405 before the body is read",
}
"""What a request without a key can cause, by who may call the route."""


@dataclass(frozen=True)
class Route:
    """Route of a server.

    Attributes:
        method: HTTP method.
        path: path with `{name}` for a segment of any value.
        content: what it answers or, for a closed route, why it is closed.
        access: who may call it.
        small_server: whether the small server has it, too.
        text_parameters: parameters that are texts to continue, in which special tokens keep their meaning.
    """

    method: str
    path: str
    content: str
    access: Access = "key"
    small_server: bool = False
    text_parameters: tuple[str, ...] = ()

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Return the regular expression of the paths of this route."""
        return re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(self.path)))


COMPLETIONS_PATH = "/v1/completions"
ANSWERED = (
    Route("GET", "/health", "whether the server runs", "everyone", small_server=True),
    Route("GET", "/ping", "whether the server runs", "everyone"),
    Route("GET", "/metrics", "metrics", "everyone", small_server=True),
    Route("GET", "/v1/models", "the model, and its erasure settings", small_server=True),
    Route("GET", "/version", "version of vLLM"),
    Route("GET", "/load", "number of running requests"),
    Route("POST", "/v1/chat/completions", "a response to a conversation", small_server=True),
    Route("POST", "/v1/chat/completions/batch", "responses to several conversations"),
    Route("POST", COMPLETIONS_PATH, "a continuation of a text", small_server=True, text_parameters=("prompt",)),
    Route("POST", "/v1/responses", "a response to a conversation"),
    Route("GET", "/v1/responses/{response_id}", "a stored response"),
    Route("POST", "/v1/responses/{response_id}/cancel", "the end of a response in the background"),
    Route("POST", "/v1/messages", "a response to a conversation, in Anthropic's format"),
    Route("POST", "/v1/messages/count_tokens", "number of tokens of a conversation"),
    Route("POST", "/tokenize", "token ids of a text or a conversation", text_parameters=("prompt",)),
    Route("POST", "/detokenize", "text of token ids"),
)
"""Routes that are answered."""


def _closed(reason: str, *routes: str) -> tuple[Route, ...]:
    pairs = (route.split(" ") for route in routes)
    return tuple(Route(method, path, reason, "nobody") for method, path in pairs)


CLOSED = (
    *_closed(
        "describes closed routes, too", "GET /openapi.json", "GET /docs", "GET /docs/oauth2-redirect", "GET /redoc"
    ),
    *_closed("serves the routes above without the key", "POST /invocations", "POST /ping"),
    *_closed("runs the model without the key", "POST /generative_scoring"),
    *_closed(
        "changes or describes the engine without the key", "POST /scale_elastic_ep", "POST /is_scaling_elastic_ep"
    ),
    *_closed("describes the engine without the key", "GET /kv_event_sources"),
    *_closed("takes token ids as the prompt of a conversation", "POST /inference/v1/generate"),
    *_closed("turns token ids into responses", "POST /v1/chat/completions/derender", "POST /v1/completions/derender"),
    *_closed("has a request format that the guard cannot judge", "POST /v1/systemone"),
    *_closed("ends requests of other clients", "POST /inference/v1/abort_requests"),
    *_closed("is for servers that only make prompts", "POST /v1/chat/completions/render", "POST /v1/messages/render"),
    *_closed("is for servers that only make prompts", "POST /v1/completions/render", "POST /v1/responses/render"),
)
"""Routes of vLLM that are closed."""


def find_route(method: str, path: str) -> Route:
    """Return the answered route of a request; `OPTIONS` finds every answered path.

    Raises:
        RefusedRequestError: with status 404 or 405, if the request has no route that is answered.
    """
    found = [route for route in ANSWERED if route.pattern.fullmatch(path)]
    if not found:
        raise RefusedRequestError(
            404, f"this server does not answer {path}: use an endpoint such as /v1/chat/completions"
        )
    for route in found:
        if method in (route.method, "OPTIONS"):
            return route
    raise RefusedRequestError(405, f"{path} does not answer {method}: use {found[0].method}")


def routes_table() -> str:
    """Return the table of all routes for the documentation."""
    rows = [
        "| route | servers | answers, or why it is closed | who may call it | without the key |",
        "|---|---|---|---|---|",
    ]
    for route in (*ANSWERED, *CLOSED):
        servers = "both" if route.small_server else "vLLM"
        who = {"everyone": "everyone", "key": "who has the key", "nobody": "nobody"}[route.access]
        cells = f"`{route.method} {route.path}`", servers, route.content, who, WITHOUT_KEY[route.access]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
