"""The training recipe of the bundled checkpoints, and properties of the checkpoints."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from experiments.train_toys import POLICY, TOYS, gate_accuracies, make_tokenizer, missed_thresholds, row, train
from ghosttrace.bench.ledger import Ledger
from ghosttrace.law.markup import Markup
from ghosttrace.model.checkpoint import BUNDLED_MODELS, load, resolve_pretrained_path
from ghosttrace.training.examples import IGNORE_INDEX

pytestmark = pytest.mark.slow

TOKENIZER = make_tokenizer()
IDS, MARKUP = TOKENIZER.get_vocab(), Markup.from_tokenizer(TOKENIZER)


@pytest.mark.long
@pytest.mark.parametrize("name", TOYS)
def test_first_steps_of_the_recipe_run(name: str, tmp_path: Path) -> None:
    """A few steps of all three parts reduce the loss and give a model of the last stage."""
    toy = TOYS[name]
    toy = replace(
        toy, batch=8, parts=tuple(replace(part, steps=50 if n == 0 else 4) for n, part in enumerate(toy.parts))
    )
    model, log = train(toy, tmp_path)
    assert log[0]["loss"] < 3.3 and log[0]["loss_block"] < 3.6  # log(35 tokens) = 3.56 at initialisation
    checkpoint = load(str(model))
    assert checkpoint.stages == tuple(part.stage for part in toy.parts) and checkpoint.policy == POLICY
    accuracy = gate_accuracies(toy, model, limit=8)
    assert missed_thresholds(toy, accuracy)  # it is still untrained
    assert missed_thresholds(toy, dict.fromkeys(accuracy, 1.0)) == []


@pytest.mark.parametrize("name", sorted(BUNDLED_MODELS))
def test_bundled_checkpoints_are_small_and_share_a_tokenizer(name: str) -> None:
    assert (Path(resolve_pretrained_path(name)) / "model.safetensors").stat().st_size < 4_000_000
    bundled = load(name)
    assert bundled.tokenizer.get_vocab() == IDS
    assert bundled.policy == POLICY
    assert sum(p.numel() for p in bundled.model.parameters()) < 900_000


@pytest.mark.parametrize("name", sorted(BUNDLED_MODELS))
def test_bundled_checkpoints_match_the_recipe(name: str) -> None:
    record = json.loads((Path(resolve_pretrained_path(name)) / "training.json").read_text())
    assert record["recipe"] == json.loads(json.dumps(asdict(TOYS[name])))
    assert record["log"][-1]["cpu_minutes"] < 30
    assert missed_thresholds(TOYS[name], record["accuracy"]) == [] and record["accuracy"]["ledger-h3/restart"] <= 0.02
    checkpoint = load(name)
    assert checkpoint.stages == tuple(part.stage for part in TOYS[name].parts)
    assert checkpoint.sealed == (name == "toy-sealed")


def test_toy_sealed_decodes_over_a_sealed_cache(tmp_path: Path) -> None:
    """Accuracy is 1 at h = 0 and at chance at h = 3, because a sealed cache has no other information."""
    accuracy = gate_accuracies(TOYS["toy-sealed"], Path(resolve_pretrained_path("toy-sealed")), limit=24)
    assert accuracy["ledger-h0/restart"] >= 0.95 and accuracy["ledger-h3/restart"] <= 0.1


def test_sealed_training_rows_have_labels_determined_by_the_text() -> None:
    """Two ledgers with equal retained text have equal labels at all labelled tokens."""
    rng = np.random.default_rng(5)
    for level in range(4):
        ledger = Ledger.sample(rng, level)
        number = int(rng.integers(3))
        shift = np.zeros_like(ledger.increments)
        shift[number, 0, 3 - level :] = rng.integers(1, 10, level)
        other = replace(ledger, increments=(ledger.increments + shift) % 10)
        first, second = (
            np.array(row(x, IDS, MARKUP, observed=False, only_determined_labels=True)["labels"])
            for x in (ledger, other)
        )
        # Block n starts at token 8 + 24 n; labels that differ there depend on observations in the block itself.
        changed = range(8 + 24 * number, 25 + 24 * number)
        differs = np.flatnonzero((first != second) & (first != IGNORE_INDEX))
        later = {(index - 8) % 24 for index in differs.tolist() if index not in changed}
        assert later <= {12, 14, 16}, level  # second steps: the digit of the first step is in the same block
        assert bool(later) == (level > 0)


def test_observations_have_loss_only_if_requested() -> None:
    ledger = Ledger.sample(np.random.default_rng(0), 1)
    unobserved, observed_labels = (
        np.array(row(ledger, IDS, MARKUP, observed, only_determined_labels=False)["labels"])
        for observed in (False, True)
    )
    assert (observed_labels != IGNORE_INDEX).sum() - (unobserved != IGNORE_INDEX).sum() == 4 * (5 + 6)
    assert (observed_labels[6:] != IGNORE_INDEX).all() and (observed_labels[:6] == IGNORE_INDEX).all()
