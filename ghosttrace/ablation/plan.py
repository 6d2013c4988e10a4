"""Plan an ablation: estimate its statistical power and its cost before it runs.

Only the geometry of the model's KV cache is needed, no weights and no tokenizer. Power comes from
`ghosttrace.ablation.power`. Cache sizes come from the expiry (`ghosttrace.law.expiry`) of one synthetic trace with
blocks and mementos of average length.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ghosttrace.ablation.arms import ARMS, Memento
from ghosttrace.ablation.power import (
    Population,
    concentrated_effect,
    detectable,
    detectable_concentrated,
    interval_half_width,
    population_with_effect,
    power,
    repetitions_needed,
    standard_error,
)
from ghosttrace.ablation.published import (
    ASSUMED_ACCURACY,
    MEAN_BLOCK_TOKENS,
    MEAN_MEMENTO_TOKENS,
    MEAN_RESPONSE_TOKENS,
)
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy, alive, expiry
from ghosttrace.law.markup import Markup
from ghosttrace.model.geometry import CacheGeometry

MARKUP = Markup(1, 2, 3, 4, assistant_header=(5,))


@dataclass(frozen=True)
class Assumptions:
    """Inputs of a plan.

    Attributes:
        n_problems: Number of problems of the benchmark.
        repetitions: Number of samples per problem.
        effect: The accuracy drop to detect, as a fraction: 0.05 is 5 points.
        arms: Names in `ghosttrace.ablation.arms.ARMS`. The reference `memento` always runs.
        accuracy: Assumed accuracy under `memento`.
        concentration: How similar the problems are in difficulty (see `ghosttrace.ablation.power`).
        prompt_tokens: Average prompt length in tokens.
        response_tokens: Average response length in tokens.
        batch_size: Number of rows decoded together.
        throughput: Tokens per second decoded by the whole batch; None if unknown.

    Raises:
        UserError: An arm does not exist or a number is out of range.
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
            raise UserError("repetitions, prompt tokens, response tokens and batch size must be at least 1")
        if self.throughput is not None and not self.throughput > 0:
            raise UserError(f"the throughput in tokens per second must be above 0, not {self.throughput:g}")


@dataclass(frozen=True)
class ArmPlan:
    """Cost of one sample under an arm.

    Attributes:
        name: Name of the arm.
        has_sealed_copy: Whether the arm holds a sealed copy beside the live cache, so that each token counts twice.
        peak_tokens: Maximum number of KV tokens held.
        mean_tokens: Mean number of KV tokens held over the steps of the response.
        recomputed_tokens: Tokens prefilled again in order to seal (see `count_recomputed_tokens`).
    """

    name: str
    has_sealed_copy: bool
    peak_tokens: int
    mean_tokens: float
    recomputed_tokens: int


@dataclass(frozen=True)
class Outlook:
    """What a run can detect under one model of how an effect is spread over the problems.

    Attributes:
        power: Probability of detecting the effect with the assumed repetitions.
        half_width: Half the width of the effect's 95 % interval, mean over simulated runs, as a fraction.
        min_repetitions: Smallest number of repetitions that detects the effect with 80 % power; None if no number
            suffices.
        detectable: Smallest effect detected with 80 % power at the assumed repetitions; None if there is none.
    """

    power: float
    half_width: float
    min_repetitions: int | None
    detectable: float | None


@dataclass(frozen=True)
class Plan:
    """Statistical power and cost of a planned ablation.

    Attributes:
        assumptions: The inputs of the plan.
        policy: The checkpoint's policy.
        bytes_per_token: KV bytes per token.
        spread: What the run can detect if the arm shifts the log odds of all problems alike.
        concentrated: What the run can detect if the arm makes a share of the problems fail entirely.
        arms: Cost of one sample under each arm, the reference first.
    """

    assumptions: Assumptions
    policy: Policy
    bytes_per_token: int
    spread: Outlook
    concentrated: Outlook
    arms: tuple[ArmPlan, ...]

    @property
    def samples(self) -> int:
        """Number of samples per arm."""
        return self.assumptions.n_problems * self.assumptions.repetitions

    @property
    def rows(self) -> int:
        """Number of samples decoded together."""
        return min(self.assumptions.batch_size, self.samples)

    @property
    def tokens(self) -> int:
        """Number of tokens decoded over all arms."""
        return self.samples * self.assumptions.response_tokens * len(self.arms)

    @property
    def recomputed_tokens(self) -> int:
        """Number of tokens that sealing arms prefill again."""
        return self.samples * sum(arm.recomputed_tokens for arm in self.arms)

    @property
    def seconds(self) -> float | None:
        """Decoding time in seconds, prefill excluded; None if the throughput is unknown."""
        return None if self.assumptions.throughput is None else self.tokens / self.assumptions.throughput


def plan(geometry: CacheGeometry, dtype: torch.dtype, policy: Policy, assumptions: Assumptions) -> Plan:
    """Estimate the power and the cost of an ablation.

    Args:
        geometry: Geometry of the model's KV cache.
        dtype: Data type of the cache.
        policy: The policy that the model was trained with.
        assumptions: Problems, protocol, effect and arms.

    Returns:
        The plan.

    Raises:
        UserError: The effect is not below the accuracy, there are fewer than two problems, or an arm cannot run
            under the policy.
    """
    names = dict.fromkeys((Memento.name, *assumptions.arms))
    return Plan(
        assumptions,
        policy,
        geometry.bytes_per_token(dtype),
        *outlooks(assumptions),
        tuple(arm_plan(name, policy, assumptions.prompt_tokens, assumptions.response_tokens) for name in names),
    )


def outlooks(assumptions: Assumptions) -> tuple[Outlook, Outlook]:
    """Return what a run can detect if its effect is spread over the problems, and if a few problems carry it.

    Raises:
        UserError: The effect is not below the accuracy, or there are fewer than two problems.
    """
    known = assumptions.accuracy, assumptions.n_problems, assumptions.repetitions, assumptions.concentration
    spread, concentrated = (
        population(assumptions.accuracy, assumptions.effect, assumptions.concentration)
        for population in (population_with_effect, concentrated_effect)
    )
    return (
        outlook(assumptions, spread, detectable(*known)),
        outlook(assumptions, concentrated, detectable_concentrated(*known)),
    )


def outlook(assumptions: Assumptions, drop: Population, detectable_drop: float | None) -> Outlook:
    """Return what a run can detect in a population with the assumed effect.

    Args:
        assumptions: Problems and repetitions.
        drop: The population.
        detectable_drop: Smallest effect of this kind that is detected with 80 % power.
    """
    n, repetitions = assumptions.n_problems, assumptions.repetitions
    error = standard_error(n, drop.paired_variance, drop.within_problem_variance(repetitions))
    return Outlook(
        power(drop.effect, error, n - 1),
        interval_half_width(n, repetitions, drop),
        repetitions_needed(n, drop),
        detectable_drop,
    )


def arm_plan(name: str, policy: Policy, prompt_tokens: int, response_tokens: int) -> ArmPlan:
    """Return the cost of one sample under an arm, computed on `average_trace`.

    Raises:
        UserError: The arm cannot run under the policy.
    """
    expires_at = expiry(average_trace(prompt_tokens, response_tokens), MARKUP, ARMS[name]().adapt_policy(policy))
    caches = ARMS[name].caches
    held = caches * alive(expires_at)
    mean = float(held[prompt_tokens:].mean())
    recomputed = count_recomputed_tokens(expires_at) if caches > 1 else 0
    return ArmPlan(name, caches > 1, int(held.max()), mean, recomputed)


def average_trace(
    prompt_tokens: int, response_tokens: int, block: int = MEAN_BLOCK_TOKENS, memento: int = MEAN_MEMENTO_TOKENS
) -> np.ndarray:
    """Return a synthetic trace: a prompt, then blocks and mementos of fixed lengths until the response ends.

    Args:
        prompt_tokens: Length of the prompt.
        response_tokens: Length of the response; the last block or memento is cut off there.
        block: Tokens per block, delimiters excluded.
        memento: Tokens per memento, delimiters excluded.

    Returns:
        Token ids, int64[prompt_tokens + response_tokens]: delimiters as in `MARKUP`, 0 for all other tokens.
    """
    block_start, block_end, memento_start, memento_end = MARKUP.delimiters
    pair = [block_start, *[0] * block, block_end, memento_start, *[0] * memento, memento_end]
    prompt = [0] * (prompt_tokens - 1) + list(MARKUP.assistant_header)
    return np.concatenate([prompt, np.resize(pair, response_tokens)]).astype(np.int64)


def count_recomputed_tokens(expires_at: np.ndarray) -> int:
    """Return the number of tokens that `ghosttrace.ablation.arms.sealer` prefills again over a whole trace.

    Whenever keys expire, the sealer recomputes every retained token that comes after the first expired key or was
    added since the last expiry. An arm that seals only a part of the cache recomputes one more token each time.

    Args:
        expires_at: Expiry of each token, int64[T].
    """
    total = sealed = 0
    for query in np.unique(expires_at[expires_at < len(expires_at)]):
        first = int(np.flatnonzero(expires_at == query)[0])
        begin = min(first, sealed) if sealed else first
        total += int((expires_at[begin:query] > query).sum())
        sealed = int(query)
    return total
