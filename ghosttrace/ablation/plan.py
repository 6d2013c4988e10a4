"""What an ablation can find and what it will cost, before it is run.

A model's geometry is enough: no weights, no tokenizer. What it can find is `ghosttrace.ablation.power`'s to say;
the cache follows from the law (`ghosttrace.law.expiry`), read off one made-up trace of average proportions.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ghosttrace.ablation.arms import ARMS, Memento
from ghosttrace.ablation.power import (
    detectable,
    half_width,
    population_with_effect,
    power,
    repetitions_needed,
    standard_error,
)
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy, alive, expiry
from ghosttrace.law.markup import Markup
from ghosttrace.model.geometry import CacheGeometry

# Averages of arXiv 2604.09852: pass@1 of Qwen3-8B on AIME24, tokens of a response, of a block, of a memento.
ASSUMED_ACCURACY = 0.661
MEAN_RESPONSE_TOKENS, MEAN_BLOCK_TOKENS, MEAN_MEMENTO_TOKENS = 12_750, 1_150, 194
MARKUP = Markup(1, 2, 3, 4, assistant_header=(5,))


@dataclass(frozen=True)
class Assumptions:
    """What a plan is made for.

    Attributes:
        n_problems, repetitions: the benchmark's protocol.
        effect: the fall of accuracy to be found, as a share: 0.05 is 5 points.
        arms: names in `ghosttrace.ablation.arms.ARMS`; `memento`, the reference, always runs.
        accuracy: assumed under `memento`.
        concentration: how alike the problems are (see `ghosttrace.ablation.power`).
        prompt_tokens, response_tokens: of a sample, on average.
        batch_size: rows decoded together.
        throughput: tokens decoded a second by the whole batch; None where nobody knows.
    """

    n_problems: int
    repetitions: int
    effect: float
    arms: tuple[str, ...]
    accuracy: float = ASSUMED_ACCURACY
    concentration: float = 1.0
    prompt_tokens: int = 200
    response_tokens: int = MEAN_RESPONSE_TOKENS
    batch_size: int = 32
    throughput: float | None = None

    def __post_init__(self) -> None:
        for name in self.arms:
            if name not in ARMS:
                raise UserError(f"no arm {name!r}: choose from {', '.join(ARMS)}")
        if min(self.repetitions, self.prompt_tokens, self.response_tokens, self.batch_size) < 1:
            raise UserError("repetitions, prompt tokens, response tokens and batch size are at least 1")
        if self.throughput is not None and not self.throughput > 0:
            raise UserError(f"the throughput is the tokens decoded a second, above 0, not {self.throughput:g}")


@dataclass(frozen=True)
class ArmPlan:
    """What one sample under an arm takes.

    Attributes:
        name: of the arm.
        has_sealed_copy: it holds a sealed copy beside the live cache, so each token counts twice.
        peak_tokens, mean_tokens: KV tokens held, at most and on average over the response's steps.
        recomputed_tokens: tokens prefilled once more to seal (see `recomputed_tokens`).
    """

    name: str
    has_sealed_copy: bool
    peak_tokens: int
    mean_tokens: float
    recomputed_tokens: int


@dataclass(frozen=True)
class Plan:
    """What an ablation can find and what it will cost.

    Attributes:
        assumptions, policy: what it was made for.
        bytes_per_token: KV bytes of one token.
        power: the chance of finding the effect at the assumed repetitions.
        half_width: half the 95 % interval that the effect would then have.
        min_repetitions: the fewest repetitions that find it with 80 % power; None if no number does.
        detectable: the smallest effect found with 80 % power at the assumed repetitions; None if
            any can be missed.
        arms: what a sample takes, arm by arm, the reference first.
    """

    assumptions: Assumptions
    policy: Policy
    bytes_per_token: int
    power: float
    half_width: float
    min_repetitions: int | None
    detectable: float | None
    arms: tuple[ArmPlan, ...]

    @property
    def samples(self) -> int:
        """Samples of one arm."""
        return self.assumptions.n_problems * self.assumptions.repetitions

    @property
    def rows(self) -> int:
        """Samples decoded together."""
        return min(self.assumptions.batch_size, self.samples)

    @property
    def tokens(self) -> int:
        """Tokens decoded under all arms."""
        return self.samples * self.assumptions.response_tokens * len(self.arms)

    @property
    def recomputed_tokens(self) -> int:
        """Tokens that sealing arms prefill again."""
        return self.samples * sum(arm.recomputed_tokens for arm in self.arms)

    @property
    def seconds(self) -> float | None:
        """Time to decode the tokens; what is prefilled is left out. None without a throughput."""
        return None if self.assumptions.throughput is None else self.tokens / self.assumptions.throughput


def plan(geometry: CacheGeometry, dtype: torch.dtype, policy: Policy, assumptions: Assumptions) -> Plan:
    """Plan an ablation.

    Args:
        geometry, dtype: of the model's cache.
        policy: the law it was trained under.
        assumptions: problems, protocol, effect and arms.

    Raises:
        UserError: the effect is not below the accuracy, there are fewer than two problems, or an arm means
            nothing under the policy.
    """
    n, repetitions = assumptions.n_problems, assumptions.repetitions
    drop = population_with_effect(assumptions.accuracy, assumptions.effect, assumptions.concentration)
    error = standard_error(n, drop.paired_variance, drop.within_problem_variance(repetitions))
    names = dict.fromkeys((Memento.name, *assumptions.arms))
    return Plan(
        assumptions,
        policy,
        geometry.bytes_per_token(dtype),
        power(drop.effect, error, n - 1),
        half_width(error, n - 1),
        repetitions_needed(n, drop),
        detectable(assumptions.accuracy, n, repetitions, assumptions.concentration),
        tuple(arm_plan(name, policy, assumptions.prompt_tokens, assumptions.response_tokens) for name in names),
    )


def arm_plan(name: str, policy: Policy, prompt_tokens: int, response_tokens: int) -> ArmPlan:
    """What one sample of average proportions takes under an arm.

    Raises:
        UserError: the arm means nothing under the policy.
    """
    times = expiry(average_trace(prompt_tokens, response_tokens), MARKUP, ARMS[name]().adapt_policy(policy))
    caches = ARMS[name].caches
    held = caches * alive(times)
    mean = float(held[prompt_tokens:].mean())
    return ArmPlan(name, caches > 1, int(held.max()), mean, count_recomputed_tokens(times) if caches > 1 else 0)


def average_trace(
    prompt_tokens: int, response_tokens: int, block: int = MEAN_BLOCK_TOKENS, memento: int = MEAN_MEMENTO_TOKENS
) -> np.ndarray:
    """A prompt, then blocks and mementos of equal lengths until the response ends.

    Returns:
        int64[prompt_tokens + response_tokens], in the ids of `MARKUP`; the rest are 0.
    """
    opened, closed, begun, ended = MARKUP.delimiters
    pair = [opened, *[0] * block, closed, begun, *[0] * memento, ended]
    prompt = [0] * (prompt_tokens - 1) + list(MARKUP.assistant_header)
    return np.concatenate([prompt, np.resize(pair, response_tokens)]).astype(np.int64)


def count_recomputed_tokens(times: np.ndarray) -> int:
    """Tokens that `ghosttrace.ablation.arms.sealer` prefills again over a whole trace.

    When keys expire, it reads once more what is retained and either lies behind the first of them or was
    not there at the last expiry. An arm that seals a part alone reads one token more each time.

    Args:
        times: int64[T], expiry.
    """
    total = sealed = 0
    for at in np.unique(times[times < len(times)]):
        first = int(np.flatnonzero(times == at)[0])
        begin = min(first, sealed) if sealed else first
        total += int((times[begin:at] > at).sum())
        sealed = int(at)
    return total
