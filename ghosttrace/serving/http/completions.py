"""Conversion of request bodies to prompts and decoding jobs, and of the jobs' events to responses."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import fastapi
from fastapi import Response
from fastapi.responses import JSONResponse, StreamingResponse

from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.generate import Request, stop_ids
from ghosttrace.serving import metrics
from ghosttrace.serving.http.jobs import Job, JobEvent, JobQueue
from ghosttrace.serving.http.requests import ChatBody, CompletionBody, TextBody
from ghosttrace.serving.http.responses import Delta, ResponseBuilder, collect_response, stream_response
from ghosttrace.serving.http.text_stream import TextStream
from ghosttrace.serving.paging import PagedArm
from ghosttrace.serving.reasoning_split import Segment
from ghosttrace.serving.settings import ServingSettings, check_overrides

Events = asyncio.Queue[tuple[int, JobEvent]]
"""Events of one request's jobs: (index of the choice, event)."""


@dataclass(frozen=True)
class ServerOptions:
    """Options of the small server.

    Attributes:
        name: name of the model in requests.
        max_model_len: maximum number of tokens of a prompt and its response together.
        batch_size: maximum number of responses decoded together.
        capacity: maximum number of responses in the queue.
        api_key: bearer token that clients must send; None disables the check.
        reasoning_segment: part of a chat response that is returned as reasoning; None returns all text as content.
        request_arms: arms that a request may choose instead of the server's.
    """

    name: str
    max_model_len: int
    batch_size: int = 8
    capacity: int = 64
    api_key: str | None = None
    reasoning_segment: Segment | None = None
    request_arms: tuple[PagedArm, ...] = ()


class Completions:
    """Handler of completion requests: it queues a job for each response and answers with the jobs' events.

    Args:
        checkpoint: the model to serve.
        settings: erasure settings of requests without overrides.
        options: options of the server.
    """

    def __init__(self, checkpoint: Checkpoint, settings: ServingSettings, options: ServerOptions) -> None:
        self.checkpoint, self.settings, self.options = checkpoint, settings, options
        self.queue = JobQueue(options.batch_size, options.capacity)
        self._sampling_defaults = checkpoint.model.generation_config.to_diff_dict()
        self._stops = stop_ids(checkpoint.model)
        self._max_characters = options.max_model_len * max(map(len, checkpoint.tokenizer.get_vocab()))

    async def answer(self, body: CompletionBody, prompts: Sequence[list[int]], http: fastapi.Request) -> Response:
        """Return the response to a request, complete or streamed.

        Args:
            body: the parsed body of the request.
            prompts: token ids of each prompt; each gets `body.n` choices.
            http: the HTTP request, which is checked for disconnection.

        Raises:
            UserError: if a prompt, parameter or override is invalid, or the law cannot hold for a prompt.
            QueueFullError: if the queue has no room for all responses.
        """
        events: Events = asyncio.Queue()
        jobs = self._jobs(body, prompts, partial(_send, asyncio.get_running_loop(), events))
        self.queue.put(jobs)
        builder, deltas = ResponseBuilder(body, self.options.name, prompts), self._deltas(body, jobs, events)
        if body.stream:
            return StreamingResponse(stream_response(builder, deltas), media_type="text/event-stream")
        response = asyncio.ensure_future(collect_response(builder, deltas, len(jobs)))
        while not response.done():
            await asyncio.wait({response}, timeout=1)
            if await http.is_disconnected():
                response.cancel()
                return Response(status_code=499)
        return JSONResponse(await response)

    def chat_prompt_ids(self, body: ChatBody) -> list[int]:
        """Return the token ids of a conversation, up to and including the assistant's header.

        Raises:
            UserError: if the chat template does not accept the messages or `chat_template_kwargs`.
        """
        turns, tokenizer = body.turns(), self.checkpoint.tokenizer
        refused = {"chat_template", "tokenize"} & body.chat_template_kwargs.keys()
        if refused:
            raise UserError(f"chat_template_kwargs cannot set {', '.join(refused)}: leave it out")
        try:
            text = tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, **body.chat_template_kwargs
            )
        except Exception as error:  # a template is a program of the model and may raise any error
            raise UserError(f"the chat template does not accept these messages ({error}): change them") from error
        return self._ids(text, add_special_tokens=False)

    def text_prompt_ids(self, body: TextBody) -> list[list[int]]:
        """Return the token ids of each prompt."""
        return [self._ids(prompt) if isinstance(prompt, str) else prompt for prompt in body.prompts()]

    def _ids(self, text: str, **options: bool) -> list[int]:
        if len(text) > self._max_characters:
            raise UserError(
                f"a prompt has {len(text)} characters, which do not fit into the context of "
                f"{self.options.max_model_len} tokens: send a shorter one"
            )
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError("the text contains half of a surrogate pair, which is not a character: remove it")
        return list(self.checkpoint.tokenizer(text, **options)["input_ids"])

    def _check_prompts(self, body: CompletionBody, prompts: Sequence[list[int]]) -> None:
        max_model_len, vocab_size = self.options.max_model_len, len(self.checkpoint.tokenizer)
        for prompt in prompts:
            if not 0 < len(prompt) < max_model_len:
                raise UserError(
                    f"a prompt has {len(prompt)} tokens, but the context is {max_model_len}: send 1 to "
                    f"{max_model_len - 1} tokens"
                )
            if not all(0 <= token < vocab_size for token in prompt):
                raise UserError(f"a prompt has invalid token ids: send ids from 0 to {vocab_size - 1}")
        count, capacity = len(prompts) * body.n, self.options.capacity
        if count > capacity:
            raise UserError(f"the request asks for {count} responses: ask for at most {capacity}")

    def _jobs(
        self, body: CompletionBody, prompts: Sequence[list[int]], send: Callable[[int, JobEvent], None]
    ) -> list[Job]:
        check_overrides(body.vllm_xargs, async_scheduling=False, other_law=self.settings.other_law is not None)
        settings = self.settings.with_overrides(body.vllm_xargs)
        self._check_prompts(body, prompts)
        for prompt in prompts if settings.arm != "full" else ():
            settings.law.erasures(prompt)  # the law may not hold, as for a prompt that does not fit into a window
        seed = secrets.randbits(63) if body.seed is None else body.seed
        jobs = []
        for index, prompt in enumerate(prompt for prompt in prompts for _ in range(body.n)):
            remaining_context = self.options.max_model_len - len(prompt)
            sampling = body.sampling(self._sampling_defaults, remaining_context, settings.max_block_tokens)
            jobs.append(Job(Request(prompt, (seed, index)), settings, sampling, partial(send, index)))
        return jobs

    async def _deltas(self, body: CompletionBody, jobs: Sequence[Job], events: Events) -> AsyncIterator[Delta]:
        """Yield the deltas of a request until all its jobs have ended; cancel the jobs if the consumer stops."""
        reasoning_segment = self.options.reasoning_segment if isinstance(body, ChatBody) else None
        tokenizer, delimiters = self.checkpoint.tokenizer, self.checkpoint.markup.delimiters
        texts = [
            TextStream(tokenizer, delimiters, self._stops, body.skip_special_tokens, reasoning_segment) for _ in jobs
        ]
        running = len(jobs)
        try:
            while running:
                index, event = await events.get()
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, int):
                    yield Delta(index, *texts[index].feed(event), [event], None)
                else:
                    running -= 1
                    erased = len(event.kv_tokens) - int(event.kv_tokens[-1])
                    metrics.count_finished(event.blocks, len(event.kv_tokens), erased)
                    metrics.ERASED_TOKENS.inc(erased)
                    yield Delta(index, *texts[index].end(), [], "stop" if event.finish_reason == "eos" else "length")
        finally:
            for job in jobs:
                job.cancelled.set()


def _send(loop: asyncio.AbstractEventLoop, events: Events, index: int, event: JobEvent) -> None:
    """Pass an event from the decoding thread to the event loop, unless the server is shutting down."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(events.put_nowait, (index, event))
