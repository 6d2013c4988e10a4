"""`agent`: generated sessions of an agent that looks facts up with a tool, and is asked for one of them at the end.

Each session looks up the stock of three items. A result of the tool tells a number of three digits, drawn uniformly.
The assistant then repeats the number in its own turn, or only says that it has found it. At the end the user asks for
one number:

- `agent-noted`: for one that the assistant has repeated. Under the law `tools` the retained text determines it.
- `agent-erased`: for one that stands in the tool's result alone. Under the law `tools` the retained text says nothing
  about it, so that over a sealed cache no model exceeds an accuracy of 1 in 900.

    user        Look up how many boots, lamps and ropes we have.
    assistant   I look up the boots.                              with a call of the tool
    tool        {"item": "boots", "stock": 482}
    assistant   Found. Next I look up the lamps.                  or: We have 482 boots. Next I look up the lamps.
    …
    user        How many boots do we have? Answer with the number alone.

The numbers that the assistant does not repeat are the secrets for probes and audits. In `agent-erased`, `swap` replaces
the number that is asked for by another one.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ghosttrace.bench.benchmark import Bench, Counterfactual, Grade, Problem, Protocol
from ghosttrace.data.spans import decode, token_range
from ghosttrace.data.task import Sample, Target, Task
from ghosttrace.errors import UserError
from ghosttrace.law.law import Law
from ghosttrace.law.tools import Tools, find_tool_results

if TYPE_CHECKING:
    from ghosttrace.model.checkpoint import Checkpoint

# fmt: off
ITEMS = (
    "boots", "lamps", "ropes", "tents", "maps", "mugs", "knives", "coats", "gloves", "hats", "candles", "drums",
    "flutes", "clocks", "rugs", "chairs", "tables", "shelves", "brushes", "buckets", "ladders", "hammers", "saws",
    "nails", "bolts", "wrenches", "pumps", "hoses", "helmets", "belts", "scarves", "socks", "pens", "pencils",
    "rulers", "stamps", "folders", "binders", "kettles", "pans", "plates", "bowls", "forks", "spoons", "jars",
    "bottles", "baskets", "crates", "wheels", "chains",
)
# fmt: on
N_RESULTS, SMALLEST, NUMBERS = 3, 100, 900
DEFAULT_PROBLEMS = 200
PROBLEM_STREAM, SECRET_STREAM = 0xA6E27, 0xA6E53  # of random numbers
SYSTEM = "You look up the stock of a warehouse and answer questions about it."
DIGITS = tuple(Target(f"digit-{place}", tuple("0123456789")) for place in range(3))


@dataclass(frozen=True)
class AgentSession:
    """A session.

    Attributes:
        items: What is looked up, in order.
        stock: The number in each result.
        noted: Whether the assistant repeats each number.
        asked: Index of the item that the user asks for.
    """

    items: tuple[str, ...]
    stock: tuple[int, ...]
    noted: tuple[bool, ...]
    asked: int

    @classmethod
    def sample(cls, rng: np.random.Generator, asked_noted: bool) -> "AgentSession":
        """Draw a session whose last question is about a number that the assistant has repeated, or has not.

        Args:
            rng: Random number generator.
            asked_noted: Whether the number that is asked for is repeated; the other ones are repeated by chance.
        """
        items = tuple(str(item) for item in rng.choice(ITEMS, N_RESULTS, replace=False))
        stock = tuple(rng.integers(SMALLEST, SMALLEST + NUMBERS, N_RESULTS).tolist())
        asked = int(rng.integers(N_RESULTS))
        noted = [bool(flag) for flag in rng.integers(2, size=N_RESULTS)]
        noted[asked] = asked_noted
        return cls(items, stock, tuple(noted), asked)

    @property
    def messages(self) -> tuple[dict[str, Any], ...]:
        """The chat up to the last question, in OpenAI's message format."""
        *others, last = self.items
        chat: list[dict[str, Any]] = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"Look up how many {', '.join(others)} and {last} we have."},
        ]
        reply = ""
        for number, (item, stock) in enumerate(zip(self.items, self.stock, strict=True)):
            look = f"{reply} Next I look up the {item}." if reply else f"I look up the {item}."
            function = {"name": "stock", "arguments": {"item": item}}
            call = {"id": f"call{number:05d}", "type": "function", "function": function}
            result = json.dumps({"item": item, "stock": stock})
            chat.append({"role": "assistant", "content": look, "tool_calls": [call]})
            chat.append({"role": "tool", "name": "stock", "tool_call_id": call["id"], "content": result})
            reply = f"We have {stock} {item}." if self.noted[number] else "Found."
        question = f"How many {self.items[self.asked]} do we have? Answer with the number alone."
        return (*chat, {"role": "assistant", "content": reply}, {"role": "user", "content": question})

    def problem(self, number: int) -> Problem:
        """Return the session as a problem."""
        answer, question = str(self.stock[self.asked]), self.messages[-1]["content"]
        return Problem(str(number), question, answer, messages=self.messages)

    def counterfactual(self, number: int, rng: np.random.Generator) -> Counterfactual | None:
        """Return the session with another number in one tool result; None unless that number is asked for.

        Args:
            number: Index of the tool result.
            rng: Random number generator.
        """
        if number != self.asked or self.noted[number]:
            return None
        drawn = SMALLEST + int(rng.integers(NUMBERS - 1))
        stock = list(self.stock)
        stock[number] = drawn + (drawn >= stock[number])  # any number but the present one
        other, answer = replace(self, stock=tuple(stock)), str(stock[number])
        return Counterfactual([], answer, answer, other.messages)


def agent(limit: int | None, seed: int, *, noted: bool) -> Bench:
    """Return the benchmark.

    Args:
        limit: Number of problems; None for `DEFAULT_PROBLEMS`.
        seed: Random seed of the sessions.
        noted: Whether the number that is asked for stands in the assistant's own turn too.
    """
    rng = np.random.default_rng([seed, PROBLEM_STREAM, noted])
    sessions = [AgentSession.sample(rng, noted) for _ in range(limit or DEFAULT_PROBLEMS)]

    def counterfactual(problem: Problem, number: int, rng: np.random.Generator) -> Counterfactual | None:
        return sessions[int(problem.id)].counterfactual(number, rng)

    return Bench(
        name=f"agent-{'noted' if noted else 'erased'}",
        problems=tuple(session.problem(number) for number, session in enumerate(sessions)),
        protocol=Protocol(temperature=0.0, max_new_tokens=16, repetitions=1),
        grade=grade,
        origin=f"generated with seed {seed}",
        response=lambda problem: problem.answer,
        counterfactual=None if noted else counterfactual,
        ceiling=None if noted else 1 / NUMBERS,
        ceiling_holds=erases_every_result,
        full_size=DEFAULT_PROBLEMS,
        secrets=None if noted else secrets,
        prompts={} if noted else {"digit-*": "The stock is {digit-0}{digit-1}{digit-2}"},
    )


def erases_every_result(law: Law) -> bool:
    """Return whether every result has left before the question: one assistant turn follows the last of them."""
    return isinstance(law, Tools) and law.keep <= 1


def grade(problem: Problem, text: str) -> Grade:
    """Grade an answer by its first integer."""
    found = re.search(r"\d[\d,]*", text)
    number = found.group().replace(",", "") if found else None
    return Grade(number == problem.answer, number, "first integer")


def secrets(checkpoint: "Checkpoint", samples: int, seed: int, block: int) -> Task:
    """Return sessions in which one number stands in a tool's result alone; its digits are the targets.

    Args:
        checkpoint: Provides the tokenizer and the chat format.
        samples: Number of sessions.
        seed: Random seed.
        block: Index of the tool result with the secret.

    Raises:
        UserError: There is no such result, or the chat template shows no results of tools.
    """
    if not 0 <= block < N_RESULTS:
        raise UserError(f"a session has {N_RESULTS} tool results: give --block from 0 to {N_RESULTS - 1}")
    rng = np.random.default_rng([seed, SECRET_STREAM])
    drawn = []
    for number in range(samples):
        session = AgentSession.sample(rng, False)
        noted = tuple(flag and index != block for index, flag in enumerate(session.noted))
        session = AgentSession(session.items, session.stock, noted, session.asked)
        drawn.append(_sample(checkpoint, session, str(number), block))
    first, other = np.array([-np.inf, *[-np.log(9)] * 9]), np.full(10, -np.log(10))  # the first digit is 1 to 9
    exact = {target.name: np.tile(other if place else first, (samples, 1)) for place, target in enumerate(DIGITS)}
    return Task("agent", tuple(drawn), DIGITS, exact)


def _sample(checkpoint: "Checkpoint", session: AgentSession, base: str, block: int) -> Sample:
    ids, secret = checkpoint.prompt_ids(session.messages), str(session.stock[block])
    results = find_tool_results(ids, checkpoint.chat)
    if len(results) != N_RESULTS:
        raise UserError("the model's chat template shows no results of tools: give another model, or --traces")
    inside = ids[results[block].start : results[block].stop]
    begin = decode(checkpoint.tokenizer, inside).rindex(secret)
    span = token_range(inside, range(begin, begin + len(secret)), checkpoint.tokenizer)
    indices = tuple(results[block].start + offset for offset in span)
    turn = sum(token in checkpoint.chat.turn_starts for token in ids[: indices[0]]) - 1
    return Sample(ids, base, secret, turn, indices, tuple(int(digit) for digit in secret))


AGENT_BENCHES: dict[str, Callable[[int | None, int], Bench]] = {
    "agent-noted": partial(agent, noted=True),
    "agent-erased": partial(agent, noted=False),
}


def example_chats(number: int, seed: int) -> Sequence[dict[str, Any]]:
    """Return sessions as rows of a file of chats, without the last question, for secrets to be planted in.

    Args:
        number: Number of sessions.
        seed: Random seed.
    """
    rng = np.random.default_rng([seed, SECRET_STREAM])
    return [{"messages": list(AgentSession.sample(rng, True).messages[:-1])} for _ in range(number)]
