"""Plans agree with the power module, the law and a real session."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.families import tiny
from rich.console import Console
from transformers import Qwen3Config

from ghosttrace.ablation.arms import ARMS
from ghosttrace.ablation.plan import (
    MARKUP,
    ArmPlan,
    Assumptions,
    Plan,
    arm_plan,
    average_trace,
    count_recomputed_tokens,
    plan,
)
from ghosttrace.ablation.power import detectable, detectable_concentrated, population_with_effect, repetitions_needed
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy, expiry
from ghosttrace.law.markup import find_blocks
from ghosttrace.model.attention import attending
from ghosttrace.model.checkpoint import load_config
from ghosttrace.model.geometry import CacheGeometry
from ghosttrace.model.session import Session
from ghosttrace.report.plan import plan_table

QWEN = CacheGeometry.from_config(
    Qwen3Config(hidden_size=4096, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128)
)
AIME = Assumptions(n_problems=30, repetitions=64, effect=0.05, arms=("restart",))
KEEP = Policy(mask_delimiters=False)


def make(policy: Policy = KEEP, **changes: object) -> Plan:
    return plan(QWEN, torch.bfloat16, policy, replace(AIME, **changes))


def test_qwen3_8b_takes_144_kib_per_token() -> None:
    assert make().bytes_per_token == 147_456 == 144 * 1024


def test_plan_needs_only_a_config() -> None:
    done = plan(CacheGeometry.from_config(load_config("toy-mixed")), torch.float32, KEEP, AIME)
    assert done.bytes_per_token == 4096


def test_counts_by_hand() -> None:
    done = make(arms=("restart", "full", "memento"), response_tokens=2000, throughput=500.0)
    assert [arm.name for arm in done.arms] == ["memento", "restart", "full"]
    assert done.samples == 1920
    assert done.tokens == 1920 * 3 * 2000
    assert done.seconds == done.tokens / 500
    # One block of 1,150 tokens ends within 2,000: <|block_end|>, then the recomputed memento with both delimiters.
    assert [arm.recomputed_tokens for arm in done.arms] == [0, 1 + 194 + 2, 0]
    assert done.recomputed_tokens == 1920 * 197
    assert make().seconds is None
    assert (done.rows, make(n_problems=3, repetitions=4).rows) == (32, 12)


def test_average_trace_has_the_proportions_of_the_paper() -> None:
    """About 10,900 tokens of blocks and 1,850 of mementos; the last block has not ended."""
    tokens = average_trace(200, 12_750)
    blocks = find_blocks(tokens, MARKUP)
    assert len(tokens) == 12_950
    assert blocks[0].start == 200
    assert len(blocks) == 9
    assert {(b.end - b.start - 1, b.memento_end - b.memento_start - 1) for b in blocks} == {(1150, 194)}


@pytest.mark.parametrize("mask_delimiters", [True, False])
@pytest.mark.parametrize("keep", [0, 2])
def test_kv_equals_a_count_without_the_law(mask_delimiters: bool, keep: int) -> None:
    """The count adds the retained tokens of finished blocks and the tokens of the unfinished block."""
    erased_per_block = 1150 + 2 * mask_delimiters
    held, blocks = [], 0
    for step in range(12_750):
        held.append(201 + step - max(0, blocks - keep) * erased_per_block)
        blocks += (step + 1) % 1348 == 0
    done = make(Policy(mask_delimiters, keep), arms=("full", "restart"))
    memento, full, restart = done.arms
    assert (memento.peak_tokens, memento.mean_tokens) == (max(held), pytest.approx(np.mean(held)))
    assert (full.peak_tokens, full.mean_tokens) == (12_950, pytest.approx(200 + 12_751 / 2))
    assert (restart.peak_tokens, restart.mean_tokens) == (2 * memento.peak_tokens, 2 * memento.mean_tokens)


@pytest.mark.parametrize("name", ["memento", "placebo", "restart", "restart-renumbered", "seal-mementos"])
@pytest.mark.parametrize(
    "policy",
    [
        Policy(True),
        Policy(False),
        Policy(False, keep_last_n_blocks=2),
        Policy(True, keep_last_block_for_answer=True),
        Policy(False, erase_at="before_summary_end"),
    ],
)
def test_real_session_matches_the_plan(name: str, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small trace is fed to a tiny model, and all forwarded tokens are counted."""
    tokens = average_trace(4, 75, block=9, memento=4)
    monkeypatch.setattr("ghosttrace.ablation.plan.average_trace", lambda *lengths: tokens)
    planned = arm_plan(name, policy, 4, 75)
    read, forward = 0, Session.forward

    def counting(self: Session, cache: object, runs: list[list[int]], *rest: object) -> torch.Tensor:
        nonlocal read
        read += sum(len(run) for run in runs)
        return forward(self, cache, runs, *rest)

    monkeypatch.setattr(Session, "forward", counting)
    with attending(tiny("llama")) as model:
        session = Session(model, MARKUP, policy, [(0,)], ARMS[name]().eraser)
        session.advance([tokens.tolist()])
    row = session.rows[0]
    erasures = len(find_blocks(tokens, MARKUP)) - policy.keep_last_n_blocks
    assert max(row.kv_tokens) * (1 + planned.has_sealed_copy) == planned.peak_tokens
    assert np.mean(row.kv_tokens[4:]) * (1 + planned.has_sealed_copy) == pytest.approx(planned.mean_tokens)
    if planned.has_sealed_copy:
        assert read - len(tokens) == planned.recomputed_tokens + (name == "seal-mementos") * erasures
        assert session.eraser.sealed.slots.length[0] <= planned.peak_tokens / 2
    assert planned.has_sealed_copy == (name not in ("memento", "placebo"))


def test_nothing_is_recomputed_without_erasure() -> None:
    assert count_recomputed_tokens(expiry(average_trace(10, 900), MARKUP, KEEP)) == 0
    assert arm_plan("restart", KEEP, 10, 900) == ArmPlan("restart", True, 1820, 2 * (10 + 901 / 2), 0)


def test_detectable_effect_agrees_with_power() -> None:
    done = make(repetitions=8, concentration=2.0)
    assert done.spread.min_repetitions == repetitions_needed(30, population_with_effect(0.661, 0.05, 2.0))
    assert done.spread.detectable == detectable(0.661, 30, 8, 2.0)
    assert done.concentrated.detectable == detectable_concentrated(0.661, 30, 8, 2.0)
    needed = done.spread.min_repetitions
    at_needed, below = (make(repetitions=needed - less, concentration=2.0).spread.power for less in (0, 1))
    assert at_needed >= 0.8 > below
    for kind in ("spread", "concentrated"):
        planned = make(effect=getattr(done, kind).detectable, repetitions=8, concentration=2.0)
        assert getattr(planned, kind).power == pytest.approx(0.8, abs=1e-6)
    assert make(n_problems=120).spread.half_width < make().spread.half_width / 1.9


def test_an_effect_in_few_problems_is_harder_to_detect() -> None:
    """A drop of 5 points on 30 problems: 31 repetitions detect it if spread, no number does if concentrated."""
    done = make(repetitions=31)
    assert done.spread.power >= 0.8 > 0.3 > done.concentrated.power
    assert done.spread.min_repetitions == 31 and done.concentrated.min_repetitions is None
    assert done.concentrated.half_width > done.spread.half_width > 0.03


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"effect": 0.0}, "above 0 and below"),
        ({"effect": 5.0}, "above 0 and below"),
        ({"accuracy": 0.05}, "above 0 and below"),
        ({"accuracy": 66.1}, "between 0 and 100 %"),
        ({"n_problems": 1}, "at least 2"),
        ({"repetitions": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"prompt_tokens": 0}, "at least 1"),
        ({"throughput": 0.0}, "above 0"),
        ({"arms": ("erase",)}, "no arm 'erase'"),
        ({"policy": Policy(False, keep_last_n_blocks=-1)}, "erases none"),
        ({"policy": Policy(True), "arms": ("seal-delimiters",)}, "needs retained delimiters"),
    ],
)
def test_invalid_input_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**changes)


def shown(done: Plan) -> str:
    console = Console(width=80, record=True, file=None, quiet=True)
    with console.capture() as captured:
        console.quiet = False
        for table in plan_table(done):
            console.print(table)
    return captured.get()


def test_table_fits_80_columns() -> None:
    arms = ("memento", "full", "restart", "restart-renumbered")
    text = shown(make(arms=arms, throughput=4290.0, batch_size=128))
    assert max(len(line) for line in text.splitlines()) <= 80
    flat = " ".join(text.split())
    for words in (
        "To detect a drop of 5 points from 66.1 %",
        "problems, repetitions 30, 64",
        "samples, all arms 7,680",
        "tokens decoded, 12,750 per sample 97,920,000",
        "time to decode 6.3 hours",
        "144 KiB per token, block delimiters kept",
        "restart-renumbered* 6,264 0.86 0.47 110.1 1,781",
        "full 12,950 1.78 0.90 227.6",
    ):
        assert words in flat, (words, text)


def test_table_names_unreachable_power() -> None:
    text = " ".join(shown(make(concentration=0.1)).split())
    assert "repetitions needed for 80 % power add problems add problems" in text
    assert "set --throughput" in text
    hopeless = " ".join(shown(make(n_problems=2, effect=0.1)).split())
    assert "smallest drop detected with 80 % power add problems add problems" in hopeless
    assert "power: chance of detecting it over 99 % 4" in " ".join(shown(make(effect=0.1)).split())
