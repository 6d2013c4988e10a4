"""`window:SIZE,STRIDE`: a sliding window after the prompt, as KV-streams trains with (arXiv 2609.35750)."""

from dataclasses import dataclass

from ghosttrace.errors import UserError
from ghosttrace.law.chat import Chat
from ghosttrace.law.law import Erasure, parse_counts
from ghosttrace.law.scheduled import Prompt, ScheduledLaw


@dataclass(frozen=True)
class Window(ScheduledLaw):
    """When more than `size` keys are held, the oldest `stride` tokens after the prompt leave.

    Attributes:
        size: number of keys that may be held, those of the prompt included.
        stride: number of tokens that leave together.
        prompt: tokens that never leave.
    """

    name = "window"
    usage = "window:SIZE,STRIDE"
    size: int
    stride: int
    prompt: Prompt

    @classmethod
    def parse(cls, arguments: str, chat: Chat) -> "Window":
        counts, prompt = Prompt.parse(cls, arguments, chat)
        size, stride = parse_counts(cls, counts, (1, 1))
        law = cls(size, stride, prompt)
        law.check_prompt(prompt.length or 0)
        return law

    @property
    def spec(self) -> str:
        return f"{self.name}:{self.size},{self.stride}{self.prompt.suffix}"

    def check_prompt(self, prompt: int) -> None:
        if prompt + self.stride > self.size:
            raise UserError(
                f"a prompt of {prompt} tokens and a stride of {self.stride} do not fit into the window of {self.spec}: "
                f"give a SIZE of at least {prompt + self.stride}"
            )

    def erasure(self, prompt: int, number: int) -> Erasure:
        begin = prompt + number * self.stride
        return Erasure(range(begin, begin + self.stride), self.size + 1 + number * self.stride)
