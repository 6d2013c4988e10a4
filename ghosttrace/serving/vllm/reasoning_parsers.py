"""vLLM reasoning parsers for traces: `--reasoning-parser ghosttrace-mementos` (or `ghosttrace-blocks`).

A response's `reasoning` is the text of its mementos (or of its blocks), its `content` what follows the
thinking: behind `</think>` where the tokenizer has that token, else everything outside blocks and mementos.
"""

from collections.abc import Sequence
from typing import Any

from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.reasoning import ReasoningParser

from ghosttrace.law.markup import DELIMITERS, Markup
from ghosttrace.model.checkpoint import RECORD
from ghosttrace.serving.reader import THINK_END, Reader, Where


class TraceParser(ReasoningParser):
    """What both parsers share; vLLM makes one for each request."""

    wanted: Where

    def __init__(self, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(tokenizer, *args, **kwargs)
        config = getattr(self._model_config, "hf_config", None)
        spelled = (getattr(config, RECORD, None) or {}).get("delimiters", {})
        self._delimiters = [spelled.get(name, f"<|{name}|>") for name in DELIMITERS]
        self._end = self.vocab.get(THINK_END)
        names = dict(zip(DELIMITERS, self._delimiters, strict=True))
        self._header = list(Markup.from_tokenizer(self.model_tokenizer, names).assistant_header)
        self._reader = self._new()

    def _new(self) -> Reader:
        special = [*self.model_tokenizer.all_special_tokens, "<think>"]
        return Reader(self.wanted, self._delimiters, special, thinks=self._end is not None)

    def adjust_request(self, request: Any) -> Any:
        """The delimiters must be in the text to be told apart."""
        request.skip_special_tokens = False
        return request

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """`</think>` has been written in the turn under way; vLLM also asks of prompts, with their earlier turns."""
        ids, size = list(input_ids), len(self._header)
        if not size:
            return self._end in ids
        begins = (place for place in range(len(ids) - size, -1, -1) if ids[place : place + size] == self._header)
        return self._end in ids[next(begins, 0) :]

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """Ids behind `</think>`."""
        if self._end not in input_ids:
            return []
        return input_ids[len(input_ids) - input_ids[::-1].index(self._end) :]

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """Of a whole response."""
        reasoning, content = self._new().feed(model_output, last=True)
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
        """Of the next piece."""
        reasoning, content = self._reader.feed(delta_text)
        return DeltaMessage(reasoning=reasoning or None, content=content or None) if reasoning or content else None


class Mementos(TraceParser):
    """The reasoning is what stays of it."""

    wanted = "memento"


class Blocks(TraceParser):
    """The reasoning is what was thought, erased text included."""

    wanted = "block"
