"""The paper's toy: its sequences, its exact posterior against enumeration, its training and its probes."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.cumsum import (
    BLOCKS,
    BOS,
    DIGITS,
    EXPIRY,
    IS_DIGIT,
    IS_SUM,
    MARKUP,
    POLICY,
    checkpoint,
    cumsum_task,
    posterior,
    sample,
    sequences,
    snapshot,
    text_information,
    train,
)
from experiments.toy_leakage import (
    BLOCK,
    MODELS,
    NEAR_MEMENTOS,
    RECIPES,
    Job,
    figure,
    jobs,
    measure,
    select_rows,
    verdict,
)
from ghosttrace.law.expiry import expiry
from ghosttrace.law.markup import find_blocks
from ghosttrace.probing.evidence import NEGLIGIBLE_BITS

RESULTS = Path(__file__).parents[1] / "experiments" / "results" / "toy_leakage.parquet"
SHORT = replace(RECIPES["all"], steps=6, warm_up=2, batch=4, eval_sequences=4, snapshots=(0, 3, 6))


def test_sequences_hold_running_sums() -> None:
    digits = sample(20, np.random.default_rng(0))
    for block_digits, tokens in zip(digits.tolist(), sequences(digits), strict=True):
        assert tokens[0] == BOS
        total = 0
        for mine, place in zip(block_digits, find_blocks(tokens, MARKUP, False), strict=True):
            total += sum(mine)
            assert tokens[place.start + 1 : place.end].tolist() == mine
            assert "".join(map(str, tokens[place.memento_start + 1 : place.memento_end])) == f"{total:03d}"
            assert IS_DIGIT[place.start + 1 : place.end].all()
            assert IS_SUM[place.memento_start + 1 : place.memento_end].all()
        assert (expiry(tokens, MARKUP, POLICY) == EXPIRY).all()
    assert IS_DIGIT.sum() == BLOCKS * DIGITS
    assert IS_SUM.sum() == BLOCKS * 3


def test_posterior_against_all_tuples() -> None:
    """Every one of the 100,000 blocks, grouped by its sum."""
    blocks = np.array(list(product(range(10), repeat=DIGITS)))
    sums, found = blocks.sum(1), np.exp(posterior(DIGITS))
    best = bits = 0.0
    for total in range(9 * DIGITS + 1):
        ours = blocks[sums == total]
        for digit in range(DIGITS):
            share = np.bincount(ours[:, digit], minlength=10) / len(ours)
            np.testing.assert_allclose(found[total], share, atol=1e-12)
        best += len(ours) / len(blocks) * share.max()
        bits += len(ours) / len(blocks) * float(np.log2(10) + (share[share > 0] * np.log2(share[share > 0])).sum())
    assert text_information(DIGITS) == pytest.approx((best, bits))
    assert text_information(DIGITS) == pytest.approx((0.160, 0.163), abs=5e-4)


def test_other_sums_tell_nothing_more() -> None:
    """Three blocks of two digits, all million of them: given all sums, as given the difference around the block."""
    digits = np.array(list(product(range(10), repeat=6)), dtype=np.int64).reshape(-1, 3, 2)
    sums = digits.sum(2).cumsum(1)
    which = sums @ np.array([37 * 55, 55, 1])  # sums are at most 18, 36 and 54
    counts = np.bincount(10 * which + digits[:, 1, 0], minlength=10 * 19 * 37 * 55).reshape(-1, 10)
    share = counts / counts.sum(1, keepdims=True).clip(min=1)
    np.testing.assert_allclose(share[which], np.exp(posterior(2))[sums[:, 1] - sums[:, 0]], atol=1e-12)


@pytest.mark.parametrize(("hop", "right"), enumerate([0.1330, 0.1284, 0.1254, 0.1231, 0.1213, 0.1199, 0.1188, 0.1178]))
def test_one_sum_alone_against_sampling(hop: int, right: float) -> None:
    """The guess that the posterior calls best is right as often as the table says, and its bits are as many."""
    n, draws = DIGITS * (BLOCK + hop + 1), 100_000
    digits = np.random.default_rng(hop).integers(0, 10, (draws, n), dtype=np.int8)
    said = posterior(n)[digits.sum(1)]
    hits = said.argmax(1) == digits[:, 0]
    gained = (said[np.arange(draws), digits[:, 0]] + np.log(10)) / np.log(2)
    accuracy, bits = text_information(n)
    assert accuracy == pytest.approx(right, abs=5e-5)
    assert accuracy == pytest.approx(hits.mean(), abs=4 * hits.std() / draws**0.5)
    assert bits == pytest.approx(gained.mean(), abs=4 * gained.std() / draws**0.5)


def test_task_points_at_its_digits() -> None:
    task = cumsum_task(300, seed=3)
    task.check()
    assert len({trace.base for trace in task.samples}) == 300
    for row, trace in enumerate(task.samples):
        assert tuple(trace.ids[place] for place in trace.secret_indices) == trace.labels
        assert trace.secret == "".join(map(str, trace.labels))
        block = find_blocks(trace.ids, MARKUP, False)[trace.block]
        assert trace.secret_indices == tuple(range(block.start + 1, block.end))
        for number, target in enumerate(task.targets):
            said = task.exact_log_posteriors[target.name][row]
            assert np.exp(said).sum() == pytest.approx(1)
            assert np.isfinite(said[trace.labels[number]])
    assert cumsum_task(300, seed=3).samples == task.samples
    assert cumsum_task(300, seed=4).samples != task.samples


def test_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Stopped at a snapshot and begun again, it ends where a run without a stop does; then nothing is left to do."""
    for _ in range(2):
        train(SHORT, tmp_path / "whole")
    train(SHORT, tmp_path / "cut")
    snapshot(tmp_path / "cut", 6).unlink()
    train(SHORT, tmp_path / "cut")
    whole, cut, first = (
        torch.load(snapshot(tmp_path / name, at)) for name, at in (("whole", 6), ("cut", 6), ("cut", 0))
    )
    for name, weight in whole["model"].items():
        assert torch.equal(weight, cut["model"][name])
    assert not torch.equal(whole["model"]["lm_head.weight"], first["model"]["lm_head.weight"])
    assert 7.9e5 < sum(weight.numel() for weight in whole["model"].values()) < 8.2e5


@pytest.mark.slow
def test_a_probe_of_the_untrained_model(tmp_path: Path) -> None:
    """Its own memento tells the digits, open or sealed as it should; nothing is left behind."""
    train(replace(SHORT, steps=1, snapshots=(0,)), tmp_path / "all")
    model, task = checkpoint(tmp_path / "all", 0), cumsum_task(500, 0, BLOCK)
    found = {
        cache: measure(model, task, Job("all", 0, cache, 500, NEAR_MEMENTOS[:1]), tmp_path / "features")
        for cache in ("open", "sealed")
    }
    bits = {cache: rows.set_index("given")["bits"] for cache, rows in found.items()}
    assert bits["open"]["text"] > 0.3
    assert abs(bits["sealed"]["text"]) < 0.02
    assert bits["open"]["nothing"] == pytest.approx(bits["open"]["text"] + text_information(DIGITS)[1], abs=0.15)
    assert not (tmp_path / "features").exists()


def synthetic(bits: float) -> pd.DataFrame:
    """A table as `run` gives it, with so many bits at every later hop of the trained model."""
    rows = []
    for label, model in MODELS.items():
        for hop, given in product(range(8), ("text", "nothing")):
            here = 1.0 if hop == 0 else bits if label == "all tokens" else 0.0
            row = {"given": given, "hop": hop, "layer": "3", "carrier": "memento", "condition": "open"}
            row |= {"probe": "linear", "delimiters": "kept", "accuracy": 0.2, "bits": here}
            rows.append(row | {"bits_low": here, "bits_high": here, "p_holm": 0.5 if here == 0 else 0.001} | model)
    return pd.DataFrame(rows)


def test_the_verdict_falls_as_the_bits_do() -> None:
    leaks, stays = verdict(synthetic(0.1)), verdict(synthetic(0.0))
    assert "leak survives" in leaks[0]
    assert "leak does not survive" in stays[0]
    assert "7 of 7" in leaks[1]
    assert "0 of 7" in stays[1]
    assert "does not survive" in verdict(synthetic(NEGLIGIBLE_BITS / 2))[0]


def test_every_job_has_a_file_of_its_own() -> None:
    names = [job.name for job in jobs()]
    assert len(set(names)) == len(names)


def test_what_is_on_record_passes_its_controls() -> None:
    """Sealed caches and the memento before tell nothing beyond the text; the figure can be drawn."""
    results = pd.read_parquet(RESULTS)
    controls = results[results["condition"].isin(["sealed", "causal"]) & (results["given"] == "text")]
    assert len(controls) >= 12
    assert controls["bits"].max() < NEGLIGIBLE_BITS
    assert (select_rows(results, given="text", hop=0)["bits"] > 0).all()
    assert figure(results).axes
