"""Estimate of what a build will ask and cost, from the seed traces alone."""

from collections.abc import Iterable
from dataclasses import dataclass

from ghosttrace.pipeline.endpoint import Endpoint
from ghosttrace.pipeline.prompt_files import load_prompt
from ghosttrace.pipeline.rows import Row
from ghosttrace.pipeline.scoring import score_messages, windows
from ghosttrace.pipeline.segmentation import USUAL_BLOCK_TOKENS
from ghosttrace.pipeline.stages import Settings, split
from ghosttrace.pipeline.tokens import estimate_tokens

USUAL_SHARE = 0.2  # tokens of mementos per token of blocks, in the paper
TOKENS_PER_SCORE = 3
JUDGEMENT_TOKENS = 100


@dataclass(frozen=True)
class StageEstimate:
    """Estimated usage of a stage.

    Attributes:
        stage: name of the stage.
        calls, prompt_tokens, completion_tokens: sums over the traces, if every memento is accepted at once.
        cost: dollars for these.
        most_cost: dollars if every memento is rewritten in every round.
    """

    stage: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    most_cost: float


def estimate_costs(rows: Iterable[Row], settings: Settings, endpoint: Endpoint) -> list[StageEstimate]:
    """Estimate the usage of each stage that asks.

    The number of scoring calls is exact. Blocks are taken to have the average length of the paper, and mementos a fifth
    of it.

    Args:
        rows: selected rows.
        settings: settings of the stages.
        endpoint: prices.
    """
    usage = {name: [0, 0, 0] for name in ("score", "compress", "judge")}
    overhead = {name: estimate_tokens([load_prompt(name).system])[0] for name in usage}
    for row in rows:
        cut = split(row, settings.count_tokens)
        (problem,) = estimate_tokens([row.problem])
        tokens = sum(cut.sentence_tokens)
        for size in settings.windows:
            for first, last in windows(len(cut.sentences), size):
                messages = score_messages(cut, first, last)
                (asked,) = estimate_tokens(["".join(message["content"] for message in messages)])
                _add(usage["score"], 1, asked, TOKENS_PER_SCORE * (last - first))
        blocks, mementos = max(1, round(tokens / USUAL_BLOCK_TOKENS)), round(USUAL_SHARE * tokens)
        _add(usage["compress"], 1, overhead["compress"] + problem + tokens, mementos)
        asked = blocks * (overhead["judge"] + problem) + tokens + mementos
        _add(usage["judge"], blocks, asked, blocks * JUDGEMENT_TOKENS)
    return [
        StageEstimate(
            stage, calls, asked, answered, cost, cost * (1 if stage == "score" else 1 + settings.quality.rounds)
        )
        for stage, (calls, asked, answered) in usage.items()
        for cost in [(asked * endpoint.price_in + answered * endpoint.price_out) / 1e6]
    ]


def _add(usage: list[int], *values: int) -> None:
    usage[:] = [old + new for old, new in zip(usage, values, strict=True)]
