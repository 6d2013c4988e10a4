"""`sinks:N,WINDOW`: attention sinks and a window of the latest tokens (StreamingLLM, arXiv 2309.17453)."""

from dataclasses import dataclass

from ghosttrace.law.chat import Chat
from ghosttrace.law.law import Erasure, parse_counts
from ghosttrace.law.scheduled import Prompt, ScheduledLaw


@dataclass(frozen=True)
class Sinks(ScheduledLaw):
    """The first `count` and the latest `window` tokens are held. A prompt leaves like any other text.

    Attributes:
        count: number of sinks, the first tokens of the sequence.
        window: number of latest tokens.
    """

    name = "sinks"
    usage = "sinks:N,WINDOW"
    count: int
    window: int

    @classmethod
    def parse(cls, arguments: str, chat: Chat) -> "Sinks":
        return cls(*parse_counts(cls, arguments, (0, 1)))

    @property
    def spec(self) -> str:
        return f"{self.name}:{self.count},{self.window}"

    @property
    def prompt(self) -> Prompt:  # type: ignore[override]
        """The sinks, which never leave."""
        return Prompt(length=self.count)

    def erasure(self, prompt: int, number: int) -> Erasure:
        key = prompt + number
        return Erasure(range(key, key + 1), key + self.window + 1)
