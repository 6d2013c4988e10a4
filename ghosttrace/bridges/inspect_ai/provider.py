"""The model provider `ghosttrace`: a checkpoint that decodes under its law and an arm."""

from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any
from zlib import crc32

from anyio import to_thread
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from ghosttrace.ablation.arms import Part
from ghosttrace.ablation.settings import make_arm
from ghosttrace.bridges.inspect_ai.registry import one_sentence
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint, load
from ghosttrace.model.generate import Generation, Request, generate
from ghosttrace.model.sampling import Sampling

MAX_NEW_TOKENS = 2048  # of a response to a task that sets no maximum
MAX_CONNECTIONS = 128  # samples that wait at the same time; the model decodes one batch after the other


@dataclass(frozen=True)
class Response:
    """A response of a model, with what Inspect records of it.

    Attributes:
        text: The decoded response, special tokens included, without the token that ends the turn.
        generation: The response in tokens.
        metadata: What happened in the cache.
    """

    text: str
    generation: Generation
    metadata: dict[str, Any]


def make_response(checkpoint: Checkpoint, arm: str, generation: Generation, **more: Any) -> Response:
    """Return a response with its text and its metadata.

    Args:
        checkpoint: The model.
        arm: Name of the arm.
        generation: The response.
        more: Further metadata.
    """
    ended, held = generation.finish_reason == "eos", generation.kv_tokens
    metadata = {
        "arm": arm,
        "blocks": generation.blocks,
        "tokens_erased": len(held) - int(held[-1]),  # of those that were processed, which are all but the last
        "peak_kv_tokens": generation.peak_kv_tokens,
        "auc_kv_tokens": generation.auc_kv_tokens,
    }
    text = checkpoint.tokenizer.decode(generation.tokens[:-1] if ended else generation.tokens)
    return Response(text, generation, metadata | more)


BENCH_SAMPLE: ContextVar[Callable[[GenerateConfig], Response] | None] = ContextVar("bench_sample", default=None)
"""What decodes the sample of a benchmark whose solver is running; None for other tasks, which send messages."""


class GhostTraceAPI(ModelAPI):
    """Model provider of checkpoints.

    Model arguments (`-M name=value`): `arm`, by default `memento`; `law`, such as `window:64,16`; `device`, `dtype`,
    `mask_delimiters` and `keep_last_n_blocks` as in `ghosttrace.load`; `noise`, the size of the arm `noise`;
    `max_block_tokens`, after which the end of a block is forced.

    Raises:
        UserError: There is no such model, law, arm or argument.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008, Inspect's own signature
        arm: str = "memento",
        law: str | list[str] | None = None,
        noise: float = 0.5,
        max_block_tokens: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        mask_delimiters: bool | None = None,
        keep_last_n_blocks: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        with one_sentence():
            if unknown:
                raise UserError(
                    f"the provider ghosttrace has no argument {min(unknown)}: use arm, law, noise, max_block_tokens, "
                    "device, dtype, mask_delimiters or keep_last_n_blocks"
                )
            self.arm = make_arm(arm, Part(), noise)
            self.noise, self.max_block_tokens = noise, max_block_tokens
            spec = ",".join(map(str, law)) if isinstance(law, list) else law  # Inspect splits -M values at commas
            policy: dict[str, Any] = {"mask_delimiters": mask_delimiters, "keep_last_n_blocks": keep_last_n_blocks}
            self.checkpoint = load(model_name, device, dtype, law=spec, **policy)
        self._lock, self._asked = Lock(), Counter[tuple[int, ...]]()

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Decode a response under the law and the arm; benchmarks of the task decode whole batches."""
        if tools:
            raise UserError("the provider ghosttrace calls no tools: evaluate a task without tools")
        respond = BENCH_SAMPLE.get() or partial(self.respond, input)
        return self._output(await to_thread.run_sync(respond, config))

    def respond(self, messages: list[ChatMessage], config: GenerateConfig) -> Response:
        """Return a response to a chat. Equal chats get different random draws, in the order in which they come."""
        if self.arm.needs_counterfactuals:
            raise UserError(f"{self.arm.name} needs the counterfactual blocks of a benchmark: use ghosttrace/bench")
        checkpoint = self.checkpoint
        law = self.arm.adapt_law(checkpoint.law)
        chat = [{"role": message.role, "content": message.text} for message in messages]
        prompt = checkpoint.prompt_ids(chat)
        sampling = Sampling(**self.sampling(config, MAX_NEW_TOKENS))
        with self._lock:
            same = (config.seed or 0, crc32(repr(prompt).encode()))
            request = Request(prompt, (*same, self._asked[same]))
            self._asked[same] += 1
            model, eraser = checkpoint.model, self.arm.eraser
            (found,) = generate(model, [request], checkpoint.markup, checkpoint.policy, sampling, eraser, law=law)
        return make_response(checkpoint, self.arm.name, found)

    def sampling(self, config: GenerateConfig, max_new_tokens: int) -> dict[str, Any]:
        """Return the fields of `Sampling` that a configuration sets."""
        given = {"temperature": config.temperature, "top_p": config.top_p, "top_k": config.top_k}
        given |= {"max_new_tokens": config.max_tokens, "max_block_tokens": self.max_block_tokens}
        return {"max_new_tokens": max_new_tokens} | {name: value for name, value in given.items() if value is not None}

    def _output(self, response: Response) -> ModelOutput:
        generation = response.generation
        message = ChatMessageAssistant(content=response.text, model=self.model_name, source="generate")
        stop = "stop" if generation.finish_reason == "eos" else "max_tokens"
        prompt, tokens = len(generation.prompt), len(generation.tokens)
        return ModelOutput(
            model=self.model_name,
            choices=[ChatCompletionChoice(message=message, stop_reason=stop)],
            usage=ModelUsage(input_tokens=prompt, output_tokens=tokens, total_tokens=prompt + tokens),
            metadata=response.metadata,
        )

    def max_connections(self) -> int:
        """Return the number of samples that may wait for the model."""
        return MAX_CONNECTIONS
