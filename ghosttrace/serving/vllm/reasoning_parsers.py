"""vLLM reasoning parsers for traces: `--reasoning-parser ghosttrace-mementos` or `ghosttrace-blocks`.

The `reasoning` of a response is the text of its mementos or of its blocks. Its `content` is the text after `</think>`
if the tokenizer has this token, and all text outside blocks and mementos otherwise.
"""

from collections.abc import Sequence
from typing import Any

from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.reasoning import ReasoningParser

from ghosttrace.law.markup import DELIMITERS, Markup
from ghosttrace.model.erasure_config import CONFIG_KEY
from ghosttrace.serving.reasoning_split import THINK_END, ReasoningSplitter, Segment
from ghosttrace.serving.vllm import private_api_check


class TraceParser(ReasoningParser):
    """Base class of the reasoning parsers; vLLM creates an instance for each request."""

    reasoning_segment: Segment

    def __init__(self, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
        private_api_check.check_component("reasoning")
        super().__init__(tokenizer, *args, **kwargs)
        config = getattr(self._model_config, "hf_config", None)
        recorded = (getattr(config, CONFIG_KEY, None) or {}).get("delimiters", {})
        self._delimiters = [recorded.get(name, f"<|{name}|>") for name in DELIMITERS]
        self._think_end_id = self.vocab.get(THINK_END)
        names = dict(zip(DELIMITERS, self._delimiters, strict=True))
        self._header = list(Markup.from_tokenizer(self.model_tokenizer, names).assistant_header)
        self._splitter = self._make_splitter()

    def _make_splitter(self) -> ReasoningSplitter:
        special = [*self.model_tokenizer.all_special_tokens, "<think>"]
        return ReasoningSplitter(self.reasoning_segment, self._delimiters, special, self._think_end_id is not None)

    def adjust_request(self, request: Any) -> Any:
        """Keep special tokens in the text, because the splitter needs the delimiters."""
        request.skip_special_tokens = False
        return request

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Return whether the last turn of the assistant contains `</think>`.

        vLLM also calls this method with prompts, whose earlier turns do not count.
        """
        ids, size = list(input_ids), len(self._header)
        if not size:
            return self._think_end_id in ids
        turn_starts = (index for index in range(len(ids) - size, -1, -1) if ids[index : index + size] == self._header)
        return self._think_end_id in ids[next(turn_starts, 0) :]

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """Return the token ids after the last `</think>`."""
        if self._think_end_id not in input_ids:
            return []
        return input_ids[len(input_ids) - input_ids[::-1].index(self._think_end_id) :]

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """Return the reasoning and the content of a complete response."""
        reasoning, content = self._make_splitter().feed(model_output, last=True)
        return reasoning or None, content or None

    def extract_reasoning_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
    ) -> DeltaMessage | None:
        """Return the reasoning and the content in the next piece of text; None if it has neither."""
        reasoning, content = self._splitter.feed(delta_text)
        return DeltaMessage(reasoning=reasoning or None, content=content or None) if reasoning or content else None


class MementoParser(TraceParser):
    """Reasoning parser that returns the text of the mementos as the reasoning."""

    reasoning_segment = "memento"


class BlockParser(TraceParser):
    """Reasoning parser that returns the text of all blocks as the reasoning, including erased blocks."""

    reasoning_segment = "block"
