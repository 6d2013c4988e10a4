"""Test matrix of arms: one row per arm, run on every family by `test_arms` and on every device by `test_devices`."""

from dataclasses import dataclass

import numpy as np

from ghosttrace.ablation.arms import (
    Arm,
    Full,
    Memento,
    Noise,
    PlaceboArm,
    Rerotated,
    Restart,
    RestartBare,
    RestartRenumbered,
    SealDelimiters,
    SealMementos,
    Swap,
)
from ghosttrace.law.expiry import Policy
from ghosttrace.law.markup import find_blocks
from helpers.traces import MARKUP, trace

TRACES = [trace(seed, blocks) for seed, blocks in ((0, 5), (1, 6))]
ERASE, KEEP = Policy(True), Policy(False)


def other_blocks(tokens: list[int], seed: int = 9) -> list[int]:
    """Return the trace with the content of every block replaced by random text of equal length."""
    rng, changed = np.random.default_rng(seed), list(tokens)
    for block in find_blocks(tokens, MARKUP):
        inside = slice(block.start + 1, block.end)
        changed[inside] = rng.integers(8, 96, block.end - block.start - 1).tolist()
    return changed


def donor(key: tuple[int, ...], number: int, length: int) -> list[int] | None:
    """Return a counterfactual content of block 2, and None for other blocks."""
    if number != 2:
        return None
    block = find_blocks(TRACES[key[0]], MARKUP)[2]
    return other_blocks(TRACES[key[0]])[block.start + 1 : block.end]


@dataclass(frozen=True)
class Case:
    """One arm of the shared matrix.

    Attributes:
        arm: Arm under test.
        differs_from_memento: Whether logits after the first erasure differ from those of `memento`.
        ignores_block_content: Whether logits are independent of the content of erased blocks.
        policy: Policy to which the arm applies.
    """

    arm: Arm
    differs_from_memento: bool = True
    ignores_block_content: bool = False
    policy: Policy = ERASE


MATRIX = {
    "full": Case(Full()),
    "memento": Case(Memento(), differs_from_memento=False),
    "restart": Case(Restart(), ignores_block_content=True),
    "restart-bare": Case(RestartBare(), ignores_block_content=True, policy=KEEP),
    "restart-renumbered": Case(RestartRenumbered(), ignores_block_content=True),
    "rerotated": Case(Rerotated()),
    "placebo": Case(PlaceboArm(), differs_from_memento=False),
    "seal-delimiters": Case(SealDelimiters(), policy=KEEP),
    "seal-mementos": Case(SealMementos(), policy=KEEP),
    "swap": Case(Swap(donor)),
    "noise": Case(Noise(size=0.5)),
}
