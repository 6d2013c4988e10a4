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
        for own_digits, block in zip(block_digits, find_blocks(tokens, MARKUP, False), strict=True):
            total += sum(own_digits)
            assert tokens[block.start + 1 : block.end].tolist() == own_digits
            assert "".join(map(str, tokens[block.memento_start + 1 : block.memento_end])) == f"{total:03d}"
            assert IS_DIGIT[block.start + 1 : block.end].all()
            assert IS_SUM[block.memento_start + 1 : block.memento_end].all()
        assert (expiry(tokens, MARKUP, POLICY) == EXPIRY).all()
    assert IS_DIGIT.sum() == BLOCKS * DIGITS
    assert IS_SUM.sum() == BLOCKS * 3


def test_posterior_equals_enumeration() -> None:
    """Compared with all 100,000 blocks, grouped by their sum."""
    blocks = np.array(list(product(range(10), repeat=DIGITS)))
    sums, probabilities = blocks.sum(1), np.exp(posterior(DIGITS))
    best = bits = 0.0
    for total in range(9 * DIGITS + 1):
        matching = blocks[sums == total]
        for digit in range(DIGITS):
            share = np.bincount(matching[:, digit], minlength=10) / len(matching)
            np.testing.assert_allclose(probabilities[total], share, atol=1e-12)
        best += len(matching) / len(blocks) * share.max()
        bits += len(matching) / len(blocks) * float(np.log2(10) + (share[share > 0] * np.log2(share[share > 0])).sum())
    assert text_information(DIGITS) == pytest.approx((best, bits))
    assert text_information(DIGITS) == pytest.approx((0.160, 0.163), abs=5e-4)


def test_other_sums_add_no_information() -> None:
    """For all 10^6 sequences of three two-digit blocks, all sums give the posterior of the block's own difference."""
    digits = np.array(list(product(range(10), repeat=6)), dtype=np.int64).reshape(-1, 3, 2)
    sums = digits.sum(2).cumsum(1)
    which = sums @ np.array([37 * 55, 55, 1])  # sums are at most 18, 36 and 54
    counts = np.bincount(10 * which + digits[:, 1, 0], minlength=10 * 19 * 37 * 55).reshape(-1, 10)
    share = counts / counts.sum(1, keepdims=True).clip(min=1)
    np.testing.assert_allclose(share[which], np.exp(posterior(2))[sums[:, 1] - sums[:, 0]], atol=1e-12)


@pytest.mark.parametrize(("hop", "right"), enumerate([0.1330, 0.1284, 0.1254, 0.1231, 0.1213, 0.1199, 0.1188, 0.1178]))
def test_text_information_of_one_sum_equals_sampling(hop: int, right: float) -> None:
    """Accuracy and bits of the posterior in a large sample equal `text_information`."""
    n, draws = DIGITS * (BLOCK + hop + 1), 100_000
    digits = np.random.default_rng(hop).integers(0, 10, (draws, n), dtype=np.int8)
    log_posterior = posterior(n)[digits.sum(1)]
    correct = log_posterior.argmax(1) == digits[:, 0]
    gained = (log_posterior[np.arange(draws), digits[:, 0]] + np.log(10)) / np.log(2)
    accuracy, bits = text_information(n)
    assert accuracy == pytest.approx(right, abs=5e-5)
    assert accuracy == pytest.approx(correct.mean(), abs=4 * correct.std() / draws**0.5)
    assert bits == pytest.approx(gained.mean(), abs=4 * gained.std() / draws**0.5)


def test_secret_indices_point_at_the_digits() -> None:
    task = cumsum_task(300, seed=3)
    task.check()
    assert len({trace.base for trace in task.samples}) == 300
    for row, trace in enumerate(task.samples):
        assert tuple(trace.ids[index] for index in trace.secret_indices) == trace.labels
        assert trace.secret == "".join(map(str, trace.labels))
        block = find_blocks(trace.ids, MARKUP, False)[trace.block]
        assert trace.secret_indices == tuple(range(block.start + 1, block.end))
        for number, target in enumerate(task.targets):
            log_posterior = task.exact_log_posteriors[target.name][row]
            assert np.exp(log_posterior).sum() == pytest.approx(1)
            assert np.isfinite(log_posterior[trace.labels[number]])
    assert cumsum_task(300, seed=3).samples == task.samples
    assert cumsum_task(300, seed=4).samples != task.samples


def test_training_resumes_from_a_snapshot(tmp_path: Path) -> None:
    """Resumed training ends with the weights of an uninterrupted run; a finished training does nothing."""
    for _ in range(2):
        train(SHORT, tmp_path / "whole")
    train(SHORT, tmp_path / "cut")
    snapshot(tmp_path / "cut", 6).unlink()
    train(SHORT, tmp_path / "cut")
    reference, resumed, first = (
        torch.load(snapshot(tmp_path / name, step)) for name, step in (("whole", 6), ("cut", 6), ("cut", 0))
    )
    for name, weight in reference["model"].items():
        assert torch.equal(weight, resumed["model"][name])
    assert not torch.equal(reference["model"]["lm_head.weight"], first["model"]["lm_head.weight"])
    assert 7.9e5 < sum(weight.numel() for weight in reference["model"].values()) < 8.2e5


@pytest.mark.slow
def test_probe_of_the_untrained_model(tmp_path: Path) -> None:
    """The block's own memento reveals the digits only in the open cache; temporary features are removed."""
    train(replace(SHORT, steps=1, snapshots=(0,)), tmp_path / "all")
    model, task = checkpoint(tmp_path / "all", 0), cumsum_task(500, 0, BLOCK)
    measured = {
        cache: measure(model, task, Job("all", 0, cache, 500, NEAR_MEMENTOS[:1]), tmp_path / "features")
        for cache in ("open", "sealed")
    }
    bits = {cache: rows.set_index("given")["bits"] for cache, rows in measured.items()}
    assert bits["open"]["text"] > 0.3
    assert abs(bits["sealed"]["text"]) < 0.02
    assert bits["open"]["nothing"] == pytest.approx(bits["open"]["text"] + text_information(DIGITS)[1], abs=0.15)
    assert not (tmp_path / "features").exists()


def synthetic(bits: float) -> pd.DataFrame:
    """Return a result table with `bits` at every later hop of the trained model."""
    rows = []
    for label, model in MODELS.items():
        for hop, given in product(range(8), ("text", "nothing")):
            hop_bits = 1.0 if hop == 0 else bits if label == "all tokens" else 0.0
            row = {"given": given, "hop": hop, "layer": "3", "carrier": "memento", "condition": "open"}
            row |= {"probe": "linear", "delimiters": "kept", "accuracy": 0.2, "bits": hop_bits}
            rows.append(
                row | {"bits_low": hop_bits, "bits_high": hop_bits, "p_holm": 0.5 if hop_bits == 0 else 0.001} | model
            )
    return pd.DataFrame(rows)


def test_verdict_follows_the_bits() -> None:
    leaks, stays = verdict(synthetic(0.1)), verdict(synthetic(0.0))
    assert "leak survives" in leaks[0]
    assert "leak does not survive" in stays[0]
    assert "7 of 7" in leaks[1]
    assert "0 of 7" in stays[1]
    assert "does not survive" in verdict(synthetic(NEGLIGIBLE_BITS / 2))[0]


def test_jobs_have_distinct_files() -> None:
    names = [job.name for job in jobs()]
    assert len(set(names)) == len(names)


def test_recorded_results_pass_their_controls() -> None:
    """Sealed caches and the preceding memento have no bits beyond the text, and the figure can be drawn."""
    results = pd.read_parquet(RESULTS)
    controls = results[results["condition"].isin(["sealed", "causal"]) & (results["given"] == "text")]
    assert len(controls) >= 12
    assert controls["bits"].max() < NEGLIGIBLE_BITS
    assert (select_rows(results, given="text", hop=0)["bits"] > 0).all()
    assert figure(results).axes
