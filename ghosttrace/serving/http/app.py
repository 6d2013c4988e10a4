"""A small server without vLLM: `ghosttrace serve --backend hf`.

The same API from `ghosttrace.model.generate`, so that a laptop can try what erasure does: chat and text completions,
streamed or not, reasoning told apart, a request's own wishes, the guard, metrics. It decodes one batch after another
(`ghosttrace.serving.http.jobs`) and shares no prefix between requests.
"""

import asyncio
import json
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import fastapi
import prometheus_client
from fastapi import APIRouter, FastAPI, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.generate import Request, stop_ids
from ghosttrace.serving import metrics
from ghosttrace.serving.guard import Guard, Locked, special_tokens
from ghosttrace.serving.http.jobs import FullError, Heard, Job, Jobs, work
from ghosttrace.serving.http.protocol import Answer, Asked, ChatAsked, TextAsked, failure
from ghosttrace.serving.http.speech import Speech
from ghosttrace.serving.reader import Where
from ghosttrace.serving.settings import Settings, check_wishes

Piece = tuple[int, tuple[str, str], list[int], Literal["stop", "length"] | None]
"""Number of a choice, its reasoning and content, its ids, and why it ended."""


@dataclass(frozen=True)
class Options:
    """Of the server.

    Attributes:
        name: of the model, as clients ask for it.
        context: tokens of prompt and response at most.
        rows: decoded together at most.
        room: requests that may wait.
        api_key: what clients must show; None lets everybody in.
        reasoning: which part of a chat's response is its reasoning; None leaves the text whole.
    """

    name: str
    context: int
    rows: int = 8
    room: int = 64
    api_key: str | None = None
    reasoning: Where | None = None


class Front:
    """Takes requests, puts them in the queue, and answers.

    Args:
        checkpoint: whose model answers.
        law: what holds for requests that wish nothing else.
        options: of the server.
    """

    def __init__(self, checkpoint: Checkpoint, law: Settings, options: Options) -> None:
        self.checkpoint, self.law, self.options = checkpoint, law, options
        self.jobs = Jobs(options.rows, options.room)
        self._own = checkpoint.model.generation_config.to_diff_dict()
        self._stops = stop_ids(checkpoint.model)

    async def answer(self, asked: Asked, prompts: Sequence[list[int]], http: fastapi.Request) -> Response:
        """To one request, whole or as a stream.

        Raises:
            UserError: it asks for what cannot be had.
            FullError: too many wait.
        """
        heard: asyncio.Queue[tuple[int, Heard]] = asyncio.Queue()
        jobs = self._jobs(asked, prompts, partial(_pass_on, asyncio.get_running_loop(), heard))
        self.jobs.put(jobs)
        answer, pieces = Answer(asked, self.options.name, prompts), self._pieces(asked, jobs, heard)
        if asked.stream:
            return StreamingResponse(stream(answer, pieces), media_type="text/event-stream")
        whole = asyncio.ensure_future(collect(answer, pieces, len(jobs)))
        while not whole.done():
            await asyncio.wait({whole}, timeout=1)
            if await http.is_disconnected():
                whole.cancel()
                return Response(status_code=499)
        return JSONResponse(await whole)

    def chat_ids(self, asked: ChatAsked) -> list[int]:
        """A conversation's tokens, up to where the assistant begins."""
        turns, tokenizer = asked.turns(), self.checkpoint.tokenizer
        refused = {"chat_template", "tokenize"} & asked.chat_template_kwargs.keys()
        if refused:
            raise UserError(f"chat_template_kwargs cannot hold {', '.join(refused)}: the template is the model's own")
        try:
            text = tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, **asked.chat_template_kwargs
            )
        except Exception as error:  # a template is a program of the model's, and raises what it likes
            raise UserError(f"the chat template refuses these messages: {error}") from error
        return self._ids(text, add_special_tokens=False)

    def text_ids(self, asked: TextAsked) -> list[list[int]]:
        """The tokens of each prompt."""
        return [self._ids(prompt) if isinstance(prompt, str) else prompt for prompt in asked.prompts()]

    def _ids(self, text: str, **how: bool) -> list[int]:
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UserError("the text holds half of a surrogate pair, which is no letter: leave it out")
        return list(self.checkpoint.tokenizer(text, **how)["input_ids"])

    def _jobs(self, asked: Asked, prompts: Sequence[list[int]], hear: Callable[[int, Heard], None]) -> list[Job]:
        check_wishes(asked.vllm_xargs, ahead=False)
        law, most = self.law.wished(asked.vllm_xargs), self.options.context
        size = len(self.checkpoint.tokenizer)
        for prompt in prompts:
            if not 0 < len(prompt) < most:
                raise UserError(
                    f"a prompt has {len(prompt)} tokens: give 1 to {most - 1}, for {most} are all it can read"
                )
            if not all(0 <= token < size for token in prompt):
                raise UserError(f"a prompt's token ids are from 0 to {size - 1}")
        if len(prompts) * asked.n > self.options.room:
            raise UserError(f"a request asks for {len(prompts) * asked.n} responses: {self.options.room} at most")
        seed = secrets.randbits(63) if asked.seed is None else asked.seed
        jobs = []
        for number, prompt in enumerate(prompt for prompt in prompts for _ in range(asked.n)):
            sampling = asked.sampling(self._own, most - len(prompt), law.max_block_tokens)
            jobs.append(Job(Request(prompt, (seed, number)), law, sampling, partial(hear, number)))
        return jobs

    async def _pieces(
        self, asked: Asked, jobs: Sequence[Job], heard: asyncio.Queue[tuple[int, Heard]]
    ) -> AsyncIterator[Piece]:
        """What comes of a request, until all of it has come."""
        wanted = self.options.reasoning if isinstance(asked, ChatAsked) else None
        tokenizer, spelled = self.checkpoint.tokenizer, self.checkpoint.markup.delimiters
        speeches = [Speech(tokenizer, spelled, self._stops, asked.skip_special_tokens, wanted) for _ in jobs]
        going = len(jobs)
        try:
            while going:
                number, said = await heard.get()
                if isinstance(said, Exception):
                    raise said
                if isinstance(said, int):
                    yield number, speeches[number].feed(said), [said], None
                else:
                    going -= 1
                    metrics.finished(said.blocks, len(said.kv_tokens), len(said.kv_tokens) - int(said.kv_tokens[-1]))
                    metrics.ERASED.inc(len(said.kv_tokens) - int(said.kv_tokens[-1]))
                    yield number, speeches[number].end(), [], "stop" if said.finish == "eos" else "length"
        finally:
            for job in jobs:
                job.gone.set()


def _pass_on(
    loop: asyncio.AbstractEventLoop, heard: asyncio.Queue[tuple[int, Heard]], number: int, said: Heard
) -> None:
    """From the decoding thread to the one that answers, unless the server is closing."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(heard.put_nowait, (number, said))


async def collect(answer: Answer, pieces: AsyncIterator[Piece], count: int) -> dict[str, Any]:
    """All of a response at once, of so many choices."""
    texts, tokens = [["", ""] for _ in range(count)], [list[int]() for _ in range(count)]
    finishes: list[Any] = [None] * count
    async for number, (reasoning, content), ids, finish in pieces:
        texts[number][0] += reasoning
        texts[number][1] += content
        tokens[number] += ids
        finishes[number] = finish
    choices = [
        answer.choice(number, (texts[number][0], texts[number][1]), tokens[number], finishes[number])
        for number in range(count)
    ]
    return answer.whole(choices, sum(map(len, tokens)))


async def stream(answer: Answer, pieces: AsyncIterator[Piece]) -> AsyncIterator[str]:
    """A response piece by piece, as server-sent events."""
    written, begun = 0, set[int]()
    try:
        async for number, text, ids, finish in pieces:
            if answer.chat and number not in begun:
                begun.add(number)
                yield _event(answer.opening(number))
            written += len(ids)
            yield _event(answer.chunk([answer.choice(number, text, ids, finish, delta=True)]))
        last = answer.last(written)
        if last is not None:
            yield _event(last)
    except Exception as error:  # the answer has begun: all that is left is to say so in it
        yield _event(failure(500, f"decoding failed: {error}"))
    yield "data: [DONE]\n\n"


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


def make_app(checkpoint: Checkpoint, law: Settings, options: Options) -> FastAPI:
    """The server, its decoding thread started.

    Raises:
        UserError: the assistant's turn opens with plain text (see `special_tokens`).
    """
    front = Front(checkpoint, law, options)
    app = FastAPI(title="ghosttrace serve")
    app.include_router(_routes(front))
    app.add_middleware(Guard, tokens=special_tokens(checkpoint.tokenizer, checkpoint.markup))
    app.add_middleware(Locked, key=options.api_key)

    def refuse(status: int) -> Callable[[fastapi.Request, Exception], Response]:
        return lambda _, error: JSONResponse(failure(status, _sentence(error)), status)

    for kind, status in ((UserError, 400), (RequestValidationError, 400), (FullError, 503), (Exception, 500)):
        app.add_exception_handler(kind, refuse(status))
    app.add_exception_handler(HTTPException, _refuse_by_status)
    threading.Thread(target=work, args=(checkpoint, front.jobs), daemon=True).start()
    return app


def _refuse_by_status(_: fastapi.Request, error: Exception) -> Response:
    """What the framework refuses: no such path, no such method, a body that cannot be read."""
    assert isinstance(error, HTTPException)
    return JSONResponse(failure(error.status_code, str(error.detail)), error.status_code)


def _sentence(error: Exception) -> str:
    if isinstance(error, FullError):
        return "as many requests wait as may: try again later"
    if isinstance(error, RequestValidationError):
        return "; ".join(f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors())
    return str(error)


def _routes(front: Front) -> APIRouter:
    routes, name = APIRouter(), front.options.name

    def check_model(asked: Asked) -> JSONResponse | None:
        known = asked.model in (None, name)
        return None if known else JSONResponse(failure(404, f"no model {asked.model!r} here: ask for {name}"), 404)

    @routes.post("/v1/chat/completions")
    async def chat(asked: ChatAsked, http: fastapi.Request) -> Response:
        wrong = check_model(asked)
        return wrong or await front.answer(asked, [await run_in_threadpool(front.chat_ids, asked)], http)

    @routes.post("/v1/completions")
    async def complete(asked: TextAsked, http: fastapi.Request) -> Response:
        wrong = check_model(asked)
        return wrong or await front.answer(asked, await run_in_threadpool(front.text_ids, asked), http)

    @routes.get("/v1/models")
    def models() -> dict[str, Any]:
        described = {"id": name, "object": "model", "owned_by": "ghosttrace", "max_model_len": front.options.context}
        return {"object": "list", "data": [described]}

    @routes.get("/health")
    def health() -> Response:
        return Response()

    @routes.get("/metrics")
    def measured() -> Response:
        return Response(prometheus_client.generate_latest(), media_type=prometheus_client.CONTENT_TYPE_LATEST)

    return routes
