"""The stages by name, each from rows to rows, and their settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from ghosttrace.pipeline.client import Client
from ghosttrace.pipeline.compression import compress
from ghosttrace.pipeline.judgement import judge
from ghosttrace.pipeline.process import Stage, in_thread, named
from ghosttrace.pipeline.rows import Row
from ghosttrace.pipeline.scoring import WINDOW_SIZES, check_sizes, score
from ghosttrace.pipeline.segmentation import BlockLimits, check_limits, segment
from ghosttrace.pipeline.selection import Filters
from ghosttrace.pipeline.sentences import split_sentences
from ghosttrace.pipeline.settings import Quality
from ghosttrace.pipeline.tokens import TokenCounter, token_counter

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


def row_stages(settings: Settings, client: Client | None, leak_check: "LeakCheck | None" = None) -> Mapping[str, Stage]:
    """Return the stages by name, and `limits`, which checks before the scores that a segmentation is possible.

    Args:
        settings: settings of all stages.
        client: client of the endpoint, for the stages that ask it.
        leak_check: measures drafts before they are judged.
    """
    work: dict[str, Stage] = {
        "split": lambda row: in_thread(split, row, settings.count_tokens),
        "segment": lambda row: in_thread(segment, row, settings.limits),
    }
    if client is not None:
        work |= {
            "score": lambda row: score(row, client, settings.windows),
            "compress": lambda row: compress(row, client, settings.count_tokens, settings.quality),
            "judge": lambda row: _judge(row, client, leak_check),
        }
    stages = {name: _naming(name, stage) for name, stage in work.items()}
    return stages | {"limits": _naming("segment", lambda row: in_thread(check_limits, row, settings.limits))}


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


async def _judge(row: Row, client: Client, leak_check: "LeakCheck | None") -> Row:
    return await judge(row if leak_check is None else await in_thread(leak_check.measure, row), client)


def _naming(name: str, stage: Stage) -> Stage:
    return lambda row: named(name, stage(row))
