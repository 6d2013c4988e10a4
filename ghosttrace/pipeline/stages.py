"""The stages by name, each from rows to rows, and their settings."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

from ghosttrace.pipeline.client import Client
from ghosttrace.pipeline.compression import compress
from ghosttrace.pipeline.judgement import judge
from ghosttrace.pipeline.process import Stage, named
from ghosttrace.pipeline.rows import Row
from ghosttrace.pipeline.scoring import WINDOW_SIZES, check_sizes, score
from ghosttrace.pipeline.segmentation import BlockLimits, check_limits, segment
from ghosttrace.pipeline.selection import Filters
from ghosttrace.pipeline.sentences import split_sentences
from ghosttrace.pipeline.settings import Quality
from ghosttrace.pipeline.tokens import TokenCounter, token_counter
from ghosttrace.pipeline.transport import Send

if TYPE_CHECKING:
    from ghosttrace.pipeline.leak_check import LeakCheck

ASKING_STAGES = ("score", "compress", "judge")
"""The stages that ask the endpoint."""


@dataclass(frozen=True)
class Settings:
    """Settings of all stages.

    Attributes:
        tokenizer: name of the model whose tokenizer counts tokens; None estimates them.
        filters: which seed traces are kept.
        windows: sizes of the windows of the boundary scores, one for each pass.
        limits: limits of the blocks.
        quality: when a memento is accepted.

    Raises:
        UserError: the sizes of the windows have a common divisor.
    """

    tokenizer: str | None = None
    filters: Filters = field(default_factory=Filters)
    windows: tuple[int, ...] = WINDOW_SIZES
    limits: BlockLimits = field(default_factory=BlockLimits)
    quality: Quality = field(default_factory=Quality)

    def __post_init__(self) -> None:
        check_sizes(self.windows)

    @cached_property
    def count_tokens(self) -> TokenCounter:
        """The counter of tokens."""
        return token_counter(self.tokenizer)


def split(row: Row, count_tokens: TokenCounter) -> Row:
    """Split the reasoning of a row into sentences."""
    pieces = split_sentences(row.thought, count_tokens)
    texts, tokens = tuple(piece.text for piece in pieces), tuple(piece.tokens for piece in pieces)
    return replace(row, sentences=texts, sentence_tokens=tokens)


@dataclass(frozen=True)
class Work:
    """Where the work on rows is done.

    Attributes:
        compute: runs a stage that only computes on a row, by its name in `computed_stages`.
        measures: whether `compute` knows the stage `measure`.
        send: sends a request to the endpoint; None sends it from this process.
    """

    compute: Callable[[str, Row], Awaitable[Row]]
    measures: bool = False
    send: Send | None = None


def local_work(settings: Settings, leak_check: "LeakCheck | None" = None) -> Work:
    """Return the work in threads of this process, so that requests go on."""
    stages = computed_stages(settings, leak_check)
    return Work(lambda name, row: asyncio.to_thread(stages[name], row), measures=leak_check is not None)


def computed_stages(settings: Settings, leak_check: "LeakCheck | None" = None) -> Mapping[str, Callable[[Row], Row]]:
    """Return the stages that only compute.

    Args:
        settings: settings of all stages.
        leak_check: measures drafts before they are judged, in the stage `measure`.
    """
    stages: dict[str, Callable[[Row], Row]] = {
        "split": lambda row: split(row, settings.count_tokens),
        "limits": lambda row: check_limits(row, settings.limits),
        "segment": lambda row: segment(row, settings.limits),
    }
    return stages if leak_check is None else stages | {"measure": leak_check.measure}


def row_stages(settings: Settings, client: Client | None, work: Work) -> Mapping[str, Stage]:
    """Return the stages by name, and `limits`, which checks before the scores that a segmentation is possible.

    Args:
        settings: settings of all stages.
        client: client of the endpoint, for the stages that ask it.
        work: where the other stages run.
    """
    stages: dict[str, Stage] = {name: partial(work.compute, name) for name in ("split", "limits", "segment")}
    if client is not None:
        stages |= {
            "score": lambda row: score(row, client, settings.windows),
            "compress": lambda row: compress(row, client, settings.count_tokens, settings.quality),
            "judge": lambda row: _judge(row, client, work),
        }
    return {name: _naming("segment" if name == "limits" else name, stage) for name, stage in stages.items()}


async def annotate(row: Row, stages: Mapping[str, Stage], quality: Quality) -> Row:
    """Run all stages on a row; mementos that are not accepted are rewritten and judged again.

    Raises:
        RowError: a stage fails.
    """
    for name in ("split", "limits", "score", "segment"):  # no score is paid for if no segmentation is possible
        row = await stages[name](row)
    for _ in range(1 + quality.rounds):
        row = await stages["judge"](await stages["compress"](row))
        if all(memento and quality.accepts(memento) for memento in row.mementos):
            break
    return row


async def _judge(row: Row, client: Client, work: Work) -> Row:
    return await judge(await work.compute("measure", row) if work.measures else row, client)


def _naming(name: str, stage: Stage) -> Stage:
    return lambda row: named(name, stage(row))
