"""The recipe of the bundled checkpoints: its first steps run, and the checkpoints are what it says."""

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


@pytest.mark.parametrize("name", TOYS)
def test_first_steps_of_the_recipe_run(name: str, tmp_path: Path) -> None:
    """A few steps of all three parts lower the loss, and leave a model of the last stage."""
    toy = TOYS[name]
    toy = replace(
        toy, batch=8, parts=tuple(replace(part, steps=50 if n == 0 else 4) for n, part in enumerate(toy.parts))
    )
    model, log = train(toy, tmp_path)
    assert log[0]["loss"] < 3.3 and log[0]["loss_block"] < 3.6  # of 35 tokens: 3.56 at first
    found = load(str(model))
    assert found.stages == tuple(part.stage for part in toy.parts) and found.policy == POLICY
    accuracy = gate_accuracies(toy, model, limit=8)
    assert missed_thresholds(toy, accuracy)  # it has learned nothing yet
    assert missed_thresholds(toy, dict.fromkeys(accuracy, 1.0)) == []


@pytest.mark.parametrize("name", sorted(BUNDLED_MODELS))
def test_bundled_checkpoints_are_small_and_share_a_tokenizer(name: str) -> None:
    assert (Path(resolve_pretrained_path(name)) / "model.safetensors").stat().st_size < 4_000_000
    bundled = load(name)
    assert bundled.tokenizer.get_vocab() == IDS
    assert bundled.policy == POLICY
    assert sum(p.numel() for p in bundled.model.parameters()) < 900_000


@pytest.mark.parametrize("name", sorted(BUNDLED_MODELS))
def test_bundled_checkpoints_are_what_the_recipe_makes(name: str) -> None:
    record = json.loads((Path(resolve_pretrained_path(name)) / "training.json").read_text())
    assert record["recipe"] == json.loads(json.dumps(asdict(TOYS[name])))
    assert record["log"][-1]["cpu_minutes"] < 30
    assert missed_thresholds(TOYS[name], record["accuracy"]) == [] and record["accuracy"]["ledger-h3/restart"] <= 0.02
    found = load(name)
    assert found.stages == tuple(part.stage for part in TOYS[name].parts)
    assert found.sealed == (name == "toy-sealed")


def test_toy_sealed_decodes_over_a_sealed_cache(tmp_path: Path) -> None:
    """Everything at h = 0, chance at h = 3: there is nothing else in such a cache."""
    accuracy = gate_accuracies(TOYS["toy-sealed"], Path(resolve_pretrained_path("toy-sealed")), limit=24)
    assert accuracy["ledger-h0/restart"] >= 0.95 and accuracy["ledger-h3/restart"] <= 0.1


def test_blind_rows_ask_nothing_that_the_text_does_not_tell() -> None:
    """Two ledgers with the same retained text want the same, wherever they are asked."""
    rng = np.random.default_rng(5)
    for level in range(4):
        one = Ledger.sample(rng, level)
        number = int(rng.integers(3))
        shift = np.zeros_like(one.increments)
        shift[number, 0, 3 - level :] = rng.integers(1, 10, level)
        other = replace(one, increments=(one.increments + shift) % 10)
        first, second = (
            np.array(row(x, IDS, MARKUP, observed=False, only_determined_labels=True)["labels"]) for x in (one, other)
        )
        # Tokens of block n stand at places 8 + 24 n and on; what differs there is observed in the block itself.
        changed = range(8 + 24 * number, 25 + 24 * number)
        differs = np.flatnonzero((first != second) & (first != IGNORE_INDEX))
        later = {(place - 8) % 24 for place in differs.tolist() if place not in changed}
        assert later <= {12, 14, 16}, level  # second steps: the first step's digit stands in the same block
        assert bool(later) == (level > 0)


def test_observations_carry_loss_only_where_told() -> None:
    one = Ledger.sample(np.random.default_rng(0), 1)
    quiet, told = (
        np.array(row(one, IDS, MARKUP, observed, only_determined_labels=False)["labels"]) for observed in (False, True)
    )
    assert (told != IGNORE_INDEX).sum() - (quiet != IGNORE_INDEX).sum() == 4 * (5 + 6)
    assert (told[6:] != IGNORE_INDEX).all() and (told[:6] == IGNORE_INDEX).all()
