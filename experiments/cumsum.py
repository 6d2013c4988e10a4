"""The paper's toy (arXiv 2604.09852, appendix A.4.2): ten blocks of five random digits, mementos their running sum.

`<bos>` and ten times `<|block_start|> d d d d d <|block_end|> <|summary_start|> s s s <|summary_end|>`, where
s s s is the sum of all digits so far, 000 to 450. All sequences have the same layout, and the token id of a digit is
the digit itself. Finished blocks are erased immediately and delimiters are kept, as for the paper's Qwen3. This module
provides the sequences, the model and its training, and the exact posterior of a digit given the retained text.
"""

import json
import time
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from ghosttrace.data.task import Sample, Target, Task
from ghosttrace.law.expiry import Policy, expiry
from ghosttrace.law.markup import DELIMITERS, Markup
from ghosttrace.model.attention import attending
from ghosttrace.model.checkpoint import Checkpoint

BLOCKS, DIGITS, SUM_DIGITS = 10, 5, 3
MARKUP = Markup(block_start=10, block_end=11, summary_start=12, summary_end=13)
BOS, VOCABULARY = 14, 15
PERIOD = DIGITS + SUM_DIGITS + 4
LENGTH = 1 + BLOCKS * PERIOD
LOG_EVERY = 100
POLICY = Policy(mask_delimiters=False, require_assistant_section=False)


def sample(n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw random digits, int64[n, 10, 5]."""
    return rng.integers(0, 10, (n, BLOCKS, DIGITS))


def sequences(digits: np.ndarray) -> np.ndarray:
    """Return the token ids, int64[n, 121], of the sequences of some digits, int64[n, 10, 5]."""
    sums = digits.sum(2).cumsum(1)
    spelled = np.stack([sums // 100, sums // 10 % 10, sums % 10], axis=2)
    marks = [np.full((*sums.shape, 1), mark) for mark in MARKUP.delimiters]
    blocks = np.concatenate([marks[0], digits, *marks[1:3], spelled, marks[3]], axis=2)
    return np.concatenate([np.full((len(digits), 1), BOS), blocks.reshape(len(digits), -1)], axis=1)


EXPIRY = expiry(sequences(np.zeros((1, BLOCKS, DIGITS), dtype=np.int64))[0], MARKUP, POLICY)
INDEX_IN_PERIOD = (np.arange(LENGTH) - 1) % PERIOD  # index within a block-memento pair
IS_SUM = (INDEX_IN_PERIOD >= DIGITS + 3) & (INDEX_IN_PERIOD < PERIOD - 1) & (np.arange(LENGTH) > 0)
IS_DIGIT = (INDEX_IN_PERIOD >= 1) & (INDEX_IN_PERIOD <= DIGITS) & (np.arange(LENGTH) > 0)


def counts(n: int) -> np.ndarray:
    """Count the tuples of n digits by their sum, float[9n + 1]; exact up to n = 15, beyond that to float precision."""
    ways: np.ndarray = np.ones(1)
    for _ in range(n):
        ways = np.convolve(ways, np.ones(10))
    return ways


def posterior(n: int) -> np.ndarray:
    """Compute the posterior of one of n random digits given their sum.

    Returns:
        float[9n + 1, 10], natural logarithms by sum and digit; -inf for digits that the sum excludes.
    """
    ways = np.zeros((9 * n + 1, 10))
    for digit in range(10):
        ways[digit : digit + 9 * (n - 1) + 1, digit] = counts(n - 1)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(ways / ways.sum(1, keepdims=True)))


def text_information(n: int) -> tuple[float, float]:
    """Return the accuracy of the best guess of one of n digits given their sum, and the mutual information in bits."""
    share, log = counts(n) / 10.0**n, posterior(n)
    plogp = np.where(np.isinf(log), 0.0, np.exp(log) * np.where(np.isinf(log), 0.0, log))
    return float(share @ np.exp(log).max(1)), float(np.log2(10) + share @ plogp.sum(1) / np.log(2))


def cumsum_task(n: int, seed: int, block: int = 2) -> Task:
    """Make a task whose targets are the digits of one block.

    The retained text determines only the sum of the block's digits, as the difference of the sums before and after it;
    all later digits are independent. The exact posterior is the one given this difference.

    Args:
        n: Number of sequences.
        seed: Random seed of the digits.
        block: 0-based index of the block.
    """
    digits = sample(n, np.random.default_rng([seed, 0xC5]))
    tokens = sequences(digits).tolist()
    begin = 2 + PERIOD * block
    secret_indices = tuple(range(begin, begin + DIGITS))
    secrets = digits[:, block]
    samples = tuple(
        Sample(ids, str(number), "".join(map(str, secret)), block, secret_indices, tuple(secret))
        for number, (ids, secret) in enumerate(zip(tokens, secrets.tolist(), strict=True))
    )
    targets = tuple(Target(f"digit-{number}", tuple("0123456789")) for number in range(DIGITS))
    exact = posterior(DIGITS)[secrets.sum(1)]
    return Task("cumsum", samples, targets, {target.name: exact for target in targets})


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run.

    Attributes:
        name: Name of the recipe.
        digit_weight: Loss weight of the random digits, which are unpredictable; 1 is the paper's loss on all tokens.
        snapshots: Steps at which the state is saved; the run ends at the last one.
        seed: Random seed of weights and sequences.
        steps: Step at which the cosine schedule reaches 0; may be after the last snapshot.
        batch: Sequences per step.
        learning_rate: Peak learning rate.
        warm_up: Steps of linear warm-up.
        eval_sequences: Number of sequences on which the share of correct mementos is measured.
    """

    name: str
    digit_weight: float
    snapshots: tuple[int, ...]
    seed: int = 0
    steps: int = 4800
    batch: int = 32
    learning_rate: float = 1.5e-3
    warm_up: int = 200
    eval_sequences: int = 256


def make_model(seed: int) -> Qwen3ForCausalLM:
    """Make a randomly initialised Qwen3 model with 808K parameters."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=False,
        pad_token_id=BOS,
        bos_token_id=BOS,
        eos_token_id=None,
    )
    return Qwen3ForCausalLM(config)


def logits(model: Qwen3ForCausalLM, tokens: Tensor) -> Tensor:
    """Return the logits, float[n, 121, 15], with erasure; call it inside `attending`."""
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16):
        return model(input_ids=tokens, expiry=batch_expiry(tokens), use_cache=False).logits.float()


def batch_expiry(tokens: Tensor) -> Tensor:
    """Return the expiry of every sequence, int64[n, 121]; it is the same for all."""
    return torch.from_numpy(EXPIRY).to(tokens.device).expand(tokens.shape)


@torch.no_grad()
def memento_accuracy(model: Qwen3ForCausalLM, n: int, seed: int = 99) -> float:
    """Return the share of mementos whose three digits are all the model's top prediction, teacher-forced."""
    tokens = torch.from_numpy(sequences(sample(n, np.random.default_rng(seed)))).to(model.device)
    with attending(model, "matmul"):
        correct = logits(model, tokens)[:, :-1].argmax(2) == tokens[:, 1:]
    return float(correct[:, IS_SUM[1:]].reshape(-1, SUM_DIGITS).all(1).float().mean())


def train(recipe: Recipe, folder: Path) -> None:
    """Train a model by a recipe, resuming from its last snapshot.

    Args:
        recipe: The settings.
        folder: Folder for the snapshots and `log.jsonl`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = make_model(recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min(1.0, (s + 1) / recipe.warm_up) * 0.5 * (1 + cos(pi * s / recipe.steps)),
    )
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    done, minutes = -1, 0.0
    for step in recipe.snapshots:
        if snapshot(folder, step).exists():
            saved = torch.load(snapshot(folder, step))
            done, minutes = step, saved["minutes"]
            for name, part in parts.items():
                part.load_state_dict(saved[name])
    weights = torch.from_numpy(np.where(IS_DIGIT, recipe.digit_weight, 1.0)[1:]).float()
    started = time.process_time() - 60 * minutes
    for step in range(max(done, 0), recipe.snapshots[-1] + 1):
        row = {"step": step, "minutes": (time.process_time() - started) / 60}
        if step in recipe.snapshots and step > done:
            _save(
                {name: part.state_dict() for name, part in parts.items()}
                | row
                | {"exact": memento_accuracy(model, recipe.eval_sequences)},
                folder,
            )
        if step == recipe.snapshots[-1]:
            break
        rng = np.random.default_rng([recipe.seed, step])
        loss = _loss(model, torch.from_numpy(sequences(sample(recipe.batch, rng))), weights)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % LOG_EVERY == 0:
            with (folder / "log.jsonl").open("a") as log:
                log.write(
                    json.dumps(row | {"loss": loss.item(), "exact": memento_accuracy(model, recipe.eval_sequences)})
                    + "\n"
                )


def _loss(model: Qwen3ForCausalLM, tokens: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted cross-entropy of a batch; `weights`, float[120], has no entry for the first token."""
    with attending(model, "matmul"):
        predicted = logits(model, tokens)[:, :-1].transpose(1, 2)
    nll = torch.nn.functional.cross_entropy(predicted, tokens[:, 1:], reduction="none")
    return (nll * weights).sum() / weights.sum() / len(tokens)


def _save(state: dict[str, Any], folder: Path) -> None:
    """Save a snapshot atomically."""
    partial = folder / "snapshot.part"
    torch.save(state, partial)
    partial.replace(snapshot(folder, state["step"]))


def snapshot(folder: Path, step: int) -> Path:
    """Return the path of the state after `step` steps: model, optimizer, schedule, step, minutes and exact."""
    return folder / f"step-{step:05d}.pt"


def checkpoint(folder: Path, step: int, policy: Policy = POLICY) -> Checkpoint:
    """Load a snapshot as a checkpoint with a policy; its tokenizer only names the token ids."""
    words = [*map(str, range(10)), *(f"<|{name}|>" for name in DELIMITERS), "<bos>"]
    core = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<bos>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    model = make_model(0)
    model.load_state_dict(torch.load(snapshot(folder, step))["model"])
    return Checkpoint(f"{folder.name}-{step}", model.eval().requires_grad_(False), tokenizer, MARKUP, policy)
