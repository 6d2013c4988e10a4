"""`chunks:SIZE,CARRY`: thinking in chunks that start from the end of the last one (Delethink, arXiv 2510.06557)."""

from dataclasses import dataclass

from ghosttrace.errors import UserError
from ghosttrace.law.chat import Chat
from ghosttrace.law.law import Erasure, parse_counts
from ghosttrace.law.scheduled import Prompt, ScheduledLaw


@dataclass(frozen=True)
class Chunks(ScheduledLaw):
    """After every `size` tokens after the prompt, all of them but the last `carry` leave.

    Attributes:
        size: number of new tokens per chunk.
        carry: number of tokens that the next chunk still sees.
        prompt: tokens that never leave.
    """

    name = "chunks"
    usage = "chunks:SIZE,CARRY"
    size: int
    carry: int
    prompt: Prompt

    @classmethod
    def parse(cls, arguments: str, chat: Chat) -> "Chunks":
        counts, prompt = Prompt.parse(cls, arguments, chat)
        size, carry = parse_counts(cls, counts, (2, 1))
        if carry >= size:
            raise UserError(f"chunks:{size},{carry} carries whole chunks over: give a CARRY below SIZE")
        return cls(size, carry, prompt)

    @property
    def spec(self) -> str:
        return f"{self.name}:{self.size},{self.carry}{self.prompt.suffix}"

    def erasure(self, prompt: int, number: int) -> Erasure:
        end = prompt + (number + 1) * self.size
        begin = prompt if number == 0 else end - self.size - self.carry
        return Erasure(range(begin, end - self.carry), end)
