"""Test matrix of eviction laws: one row per law, with a slow simulation that decides at every step what leaves."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from hypothesis import strategies as st

from ghosttrace.errors import UserError
from ghosttrace.law.chat import Chat
from ghosttrace.law.expiry import NEVER, MementoLaw, Policy
from ghosttrace.law.law import KeepAll, Law
from ghosttrace.law.log import Log, LoggedSequence
from ghosttrace.law.markup import Markup
from ghosttrace.law.parse import parse_law

START, HEAD, END, SYSTEM, TOOL, OPEN, CLOSE = range(3, 10)
BS, BE, SS, SE = range(10, 14)
TEXT = 14  # smallest token of ordinary text
CHAT = Chat((START, HEAD), END, (START,), (START, SYSTEM), (OPEN,), CLOSE)
TOOL_TURNS = Chat((START, HEAD), END, (START,), (START, SYSTEM), (START, TOOL), END)
MARKUP = Markup(BS, BE, SS, SE, assistant_header=(START, HEAD), turn_end=END)

pieces = st.one_of(
    st.sampled_from([[START, HEAD], [END], [START, SYSTEM], [START, TOOL], [OPEN], [CLOSE], [BS, BE, SS, SE]]),
    st.sampled_from([[START, HEAD, TEXT, END], [OPEN, TEXT, TEXT, CLOSE], [START, TOOL, TEXT, END]]),
    st.lists(st.integers(START, TEXT + 1), max_size=5),
)
streams = st.lists(pieces, max_size=14).map(lambda parts: [token for part in parts for token in part])

Leaving = Callable[[list[int], list[int]], list[int]]
"""(tokens read so far, token indices held) to the token indices that leave now."""


def simulate(tokens: list[int], leaving: Leaving) -> np.ndarray:
    """Return the expiry of each token: after every token, `leaving` decides anew what leaves."""
    held: list[int] = []
    times = np.full(len(tokens), NEVER)
    for step in range(len(tokens)):
        held.append(step)
        for key in leaving(tokens[: step + 1], list(held)):
            held.remove(key)
            times[key] = step + 1
    return times


def prompt_length(read: list[int]) -> int | None:
    """Return the number of tokens up to the end of the first assistant header."""
    return next((i + 2 for i in range(len(read) - 1) if read[i : i + 2] == [START, HEAD]), None)


def window(size: int, stride: int) -> Leaving:
    def leaving(read: list[int], held: list[int]) -> list[int]:
        prompt = prompt_length(read)
        if prompt is None:
            return []
        if prompt + stride > size:
            raise UserError("do not fit into the window")
        return [key for key in held if key >= prompt][:stride] if len(held) > size else []

    return leaving


def sinks(count: int, latest: int) -> Leaving:
    return lambda read, held: [key for key in held if key >= count][:-latest] if len(held) > count + latest else []


def chunks(size: int, carry: int) -> Leaving:
    def leaving(read: list[int], held: list[int]) -> list[int]:
        prompt = prompt_length(read)
        if prompt is None or len(read) == prompt or (len(read) - prompt) % size:
            return []
        return [key for key in held if key >= prompt][:-carry]

    return leaving


def turns(keep: int, stride: int) -> Leaving:
    def leaving(read: list[int], held: list[int]) -> list[int]:
        starts = [i for i, token in enumerate(read) if token == START]
        spans = [range(a, b) for a, b in pairwise([*starts, len(read)])]
        if spans and read[spans[0].start : spans[0].start + 2] == [START, SYSTEM]:
            spans = spans[1:]
        spans = [span for span in spans if span.start in held]
        return [key for span in spans[:stride] for key in span] if len(spans) > keep else []

    return leaving


def tools(keep: int, opening: list[int], closing: int) -> Leaving:
    def leaving(read: list[int], held: list[int]) -> list[int]:
        in_assistant, begin, results, complete = False, None, [], 0
        for i, token in enumerate(read):
            if token == closing and not in_assistant:
                if begin is not None:
                    results.append((range(begin, i), complete))
                begin = None
            if token == END:
                complete, in_assistant = complete + in_assistant, False
            if read[: i + 1][-2:] == [START, HEAD]:
                in_assistant, begin = True, None
            elif read[: i + 1][-len(opening) :] == opening and not in_assistant:
                begin = i + 1
        due = [span for span, before in results if complete - before >= keep]
        return [key for span in due for key in span if key in held]

    return leaving


def memento(keep: int) -> Leaving:
    def leaving(read: list[int], held: list[int]) -> list[int]:
        open_turn, marks, blocks = False, [], []
        for i, token in enumerate(read):
            if read[: i + 1][-2:] == [START, HEAD] or token == END:
                open_turn, marks = token != END, []
            elif open_turn and token in (BS, BE, SS, SE):
                marks.append(i)
                if [read[mark] for mark in marks[-4:]] == [BS, BE, SS, SE]:
                    blocks.append(range(marks[-4], marks[-3] + 1))
        due = blocks[: len(blocks) - keep]
        return [key for block in due for key in block if key in held]

    return leaving


def logged_times(tokens: list[int]) -> np.ndarray:
    """Return arbitrary times at which another engine could have evicted these tokens; about half of them stay."""
    rng, steps = np.random.default_rng([len(tokens), *tokens]), np.arange(len(tokens))
    times = steps + rng.integers(2, 12, len(tokens))
    return np.where(rng.random(len(tokens)) < 0.5, NEVER, times)


def log(tokens: list[int]) -> Log:
    """Return a log of these tokens and of others."""
    sequences = tuple(LoggedSequence(np.array(row), logged_times(row)) for row in (tokens, [TEXT + 60, *tokens]))
    return Log("log.jsonl", "", sequences)


@dataclass(frozen=True)
class Case:
    """One row of the matrix.

    Attributes:
        law: makes the law; only `log` depends on the tokens.
        leaving: makes the simulation.
    """

    law: Callable[[list[int]], Law]
    leaving: Callable[[list[int]], Leaving]


def case(spec: str, leaving: Leaving, chat: Chat = CHAT) -> Case:
    return Case(lambda tokens: parse_law(spec, chat), lambda tokens: leaving)


LAWS: dict[str, Case] = {
    "memento": Case(lambda tokens: MementoLaw(MARKUP, Policy(True)), lambda tokens: memento(0)),
    "memento-last-1": Case(lambda tokens: MementoLaw(MARKUP, Policy(True, 1)), lambda tokens: memento(1)),
    "window": case("window:14,4", window(14, 4)),
    "window-1": case("window:10,1", window(10, 1)),
    "sinks": case("sinks:2,8", sinks(2, 8)),
    "no-sinks": case("sinks:0,5", sinks(0, 5)),
    "chunks": case("chunks:6,2", chunks(6, 2)),
    "turns": case("turns:2,1", turns(2, 1)),
    "turns-2": case("turns:3,2", turns(3, 2)),
    "tools-0": case("tools:0", tools(0, [OPEN], CLOSE)),
    "tools-1": case("tools:1", tools(1, [OPEN], CLOSE)),
    "tool-turns": case("tools:1", tools(1, [START, TOOL], END), TOOL_TURNS),
    "log": Case(log, lambda tokens: lambda read, held: np.flatnonzero(logged_times(tokens) == len(read)).tolist()),
    "none": Case(lambda tokens: KeepAll(), lambda tokens: lambda read, held: []),
}


def chat_trace(seed: int, rounds: int = 3) -> list[int]:
    """Return a chat in which every law of the matrix erases something, with random text of varying lengths."""
    rng = np.random.default_rng(seed)

    def text(low: int, high: int) -> list[int]:
        return rng.integers(TEXT, 96, rng.integers(low, high)).tolist()

    tokens = [START, SYSTEM, *text(1, 3), END]
    for _ in range(rounds):
        block = [BS, *text(2, 5), BE, SS, *text(1, 3), SE]
        tokens += [START, HEAD, *block, *text(1, 4), END]
        tokens += [START, TOOL, *text(1, 3), OPEN, *text(2, 6), CLOSE, END]
    return [*tokens, START, HEAD, *text(8, 12)]
