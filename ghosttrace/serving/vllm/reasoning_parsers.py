"""vLLM reasoning parsers for traces: `--reasoning-parser ghosttrace-mementos` (or `ghosttrace-blocks`).

A response's `reasoning` is the text of its mementos (or of its blocks). Its `content` is what follows `</think>` where
the tokenizer has that token, and otherwise everything outside blocks and mementos.
"""

from collections.abc import Sequence
from typing import Any

from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.reasoning import ReasoningParser

from ghosttrace.law.markup import DELIMITERS, Markup
from ghosttrace.model.checkpoint import CONFIG_KEY
from ghosttrace.serving.reasoning_split import THINK_END, ReasoningSplitter, Segment
from ghosttrace.serving.vllm import private_api_check


class TraceParser(ReasoningParser):
    """What both parsers share; vLLM makes one for each request."""

    reasoning_segment: Segment

    def __init__(self, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
        private_api_check.check_component("reasoning")
        super().__init__(tokenizer, *args, **kwargs)
        config = getattr(self._model_config, "hf_config", None)
        spelled = (getattr(config, CONFIG_KEY, None) or {}).get("delimiters", {})
        self._delimiters = [spelled.get(name, f"<|{name}|>") for name in DELIMITERS]
        self._end = self.vocab.get(THINK_END)
        names = dict(zip(DELIMITERS, self._delimiters, strict=True))
        self._header = list(Markup.from_tokenizer(self.model_tokenizer, names).assistant_header)
        self._splitter = self._make_splitter()

    def _make_splitter(self) -> ReasoningSplitter:
        special = [*self.model_tokenizer.all_special_tokens, "<think>"]
        return ReasoningSplitter(self.reasoning_segment, self._delimiters, special, has_think_end=self._end is not None)

    def adjust_request(self, request: Any) -> Any:
        """Keep the delimiters in the text, where the splitter needs them."""
        request.skip_special_tokens = False
        return request

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Whether the last turn holds `</think>`; vLLM also asks about prompts, which hold earlier turns."""
        ids, size = list(input_ids), len(self._header)
        if not size:
            return self._end in ids
        begins = (index for index in range(len(ids) - size, -1, -1) if ids[index : index + size] == self._header)
        return self._end in ids[next(begins, 0) :]

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """Return the ids after the last `</think>`."""
        if self._end not in input_ids:
            return []
        return input_ids[len(input_ids) - input_ids[::-1].index(self._end) :]

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """Return reasoning and content of a whole response."""
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
        """Return reasoning and content of the next piece; None if it adds neither."""
        reasoning, content = self._splitter.feed(delta_text)
        return DeltaMessage(reasoning=reasoning or None, content=content or None) if reasoning or content else None


class MementoParser(TraceParser):
    """Returns the text of the mementos as the reasoning."""

    reasoning_segment = "memento"


class BlockParser(TraceParser):
    """Returns the text of the blocks as the reasoning, erased blocks included."""

    reasoning_segment = "block"
