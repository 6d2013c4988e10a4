"""Train the bundled checkpoints: `python experiments/train_toys.py toy-open` (or `toy-mixed`, `toy-sealed`).

All three are trained by `ghosttrace sft` on a mix of the four levels of `ledger`, first with full attention, then with
memento attention (`toy-open`), with sealed caches (`toy-sealed`), or with both (`toy-mixed`).

- Over a sealed cache, the loss excludes digits that the retained text does not determine. The last run includes them,
  so that the models learn uniform probabilities for them.
- The loss covers the tokens that the model must write. In half of the traces of the last run it also covers the
  observations, so that the model can write valid observations without a harness.

The training log is saved beside the weights. A random seed can stall: then the accuracy check at the end fails and
nothing is written.
"""

import argparse
import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import ghosttrace as gt
from ghosttrace.bench.ledger import BLOCK_TOKENS, N_DIGITS, N_NOTES, VOCABULARY, Ledger, is_observation
from ghosttrace.law.expiry import Policy
from ghosttrace.law.markup import Markup, find_blocks
from ghosttrace.model.checkpoint import load
from ghosttrace.training.examples import IGNORE_INDEX, Stage
from ghosttrace.training.prepare import is_sealed
from ghosttrace.training.recipe import Recipe
from ghosttrace.training.sft import sft

POLICY = Policy(mask_delimiters=True)
LEVELS = np.array([1.0, 1.0, 1.5, 2.0]) / 5.5  # share of each level in the training data
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content }}"
    "{% if message.role == 'assistant' %}{{ '<eos>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class SftRun:
    """One run of `ghosttrace sft`.

    Attributes:
        stage: Stage of the recipe.
        steps: Number of optimizer steps, each on one batch of traces.
        learning_rate: Peak learning rate.
        schedule: Name of the learning-rate schedule in transformers.
        observed: Share of traces in which observations are in the loss.
        only_determined_labels: Whether the loss over a sealed cache excludes digits that the retained text does not
            determine.
    """

    stage: Stage
    steps: int
    learning_rate: float
    schedule: str = "cosine"
    observed: float = 0.0
    only_determined_labels: bool = True


@dataclass(frozen=True)
class Toy:
    """The settings of a toy's training.

    Attributes:
        name: Name of the toy.
        parts: Runs of `ghosttrace sft`, in order.
        seed: Random seed of weights and data.
        sealed_share: Share of traces over a sealed cache in runs of stage `memento`.
        batch: Traces per step.
    """

    name: str
    parts: tuple[SftRun, ...]
    seed: int = 0
    sealed_share: float = 0.0
    batch: int = 32


FULL = SftRun("full", 1400, 7e-4, "constant_with_warmup")


def memento_stages(stage: Stage) -> tuple[SftRun, ...]:
    """Return the runs after full attention: the main run and the final one with a lower learning rate."""
    return SftRun(stage, 1900, 7e-4), SftRun(stage, 700, 2e-4, observed=0.5, only_determined_labels=False)


TOYS = {
    "toy-open": Toy("toy-open", (FULL, *memento_stages("memento"))),
    "toy-mixed": Toy("toy-mixed", (FULL, *memento_stages("memento")), sealed_share=0.3),
    "toy-sealed": Toy("toy-sealed", (FULL, *memento_stages("sealed"))),
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token per character, delimiter and tag, and a chat template."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split

    vocabulary = {token: i for i, token in enumerate(VOCABULARY)}
    core = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = Split(Regex("."), "isolated")
    core.decoder = Fuse()
    core.add_special_tokens([token for token in VOCABULARY if len(token) > 1])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(seed: int) -> Qwen3ForCausalLM:
    """Make a randomly initialised Qwen3 model with about 0.8M parameters."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(VOCABULARY),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        pad_token_id=VOCABULARY.index("<pad>"),
        eos_token_id=VOCABULARY.index("<eos>"),
        bos_token_id=None,
    )
    config.ghosttrace = {"policy": replace(POLICY, keep_last_n_blocks=-1).to_dict()}
    return Qwen3ForCausalLM(config)


def row(
    ledger: Ledger, ids: dict[str, int], markup: Markup, observed: bool, only_determined_labels: bool
) -> dict[str, list[int]]:
    """Convert a ledger to a row of training data.

    Args:
        ledger: The problem and its solution.
        ids: Token ids of the vocabulary.
        markup: Markup of the tokenizer.
        observed: Whether observations are in the loss.
        only_determined_labels: Whether to exclude digits that the retained text does not determine: the hidden digits
            of the answer and of each block's first step, except in the first block, whose state is in the prompt.

    Returns:
        `input_ids` and `labels`.
    """
    prompt = ["<|user|>", *ledger.prompt, "<|assistant|>"]
    text = prompt + ledger.response()
    tokens = np.array([ids[token] for token in text])
    labels = tokens.copy()
    labels[: len(prompt)] = IGNORE_INDEX
    hidden = range(N_DIGITS - ledger.level, N_DIGITS)
    for number, block in enumerate(find_blocks(tokens, markup)):
        begin = block.start + 1
        if not observed:
            labels[[begin + index for index in range(BLOCK_TOKENS) if is_observation(index)]] = IGNORE_INDEX
        if only_determined_labels and number > 0:
            labels[[begin + N_NOTES + 2 * digit + 1 for digit in hidden]] = IGNORE_INDEX
    if only_determined_labels:
        labels[[len(text) - 1 - N_DIGITS + digit for digit in hidden]] = IGNORE_INDEX
    return {"input_ids": tokens.tolist(), "labels": labels.tolist()}


def write_rows(path: Path, toy: Toy, number: int, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write the training traces of run `number` to a parquet file; every trace is new."""
    part, rng = toy.parts[number], np.random.default_rng([toy.seed, number, 1])
    ids, markup = tokenizer.get_vocab(), Markup.from_tokenizer(tokenizer)
    rows = []
    for index in range(part.steps * toy.batch):
        sealed = part.stage == "sealed" or (part.stage == "memento" and is_sealed(index, toy.sealed_share, toy.seed))
        ledger = Ledger.sample(rng, int(rng.choice(N_DIGITS + 1, p=LEVELS)))
        observed = bool(rng.random() < part.observed)
        rows.append(row(ledger, ids, markup, observed, sealed and part.only_determined_labels))
    pd.DataFrame(rows).to_parquet(path, index=False)


def flags(toy: Toy, part: SftRun) -> tuple[str, ...]:
    """Return the trainer's command-line options for one run."""
    options = {
        "learning_rate": part.learning_rate,
        "lr_scheduler_type": part.schedule,
        "warmup_steps": min(100, part.steps // 8),
        "adam_beta2": 0.98,
        "weight_decay": 0.01,
        "max_length": 1024,
        "max_steps": part.steps,
        "per_device_train_batch_size": toy.batch,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "bf16": True,
        "seed": toy.seed,
        "logging_steps": 50,
        "save_strategy": "no",
        "disable_tqdm": True,
        "dtype": "float32",
    }
    return tuple(text for name, value in options.items() for text in (f"--{name}", str(value)))


def train(toy: Toy, work: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Run all parts; return the folder of the last model and the training log."""
    tokenizer, log, started = make_tokenizer(), list[dict[str, Any]](), time.process_time()
    model = work / "untrained"
    make_model(toy.seed).save_pretrained(model)
    tokenizer.save_pretrained(model)
    for number, part in enumerate(toy.parts):
        rows, out = work / f"rows-{number}.parquet", work / f"part-{number}"
        write_rows(rows, toy, number, tokenizer)
        share = toy.sealed_share if part.stage == "memento" else 0.0
        recipe = Recipe(
            str(model), (str(rows),), part.stage, sealed_share=share, kernel="matmul", trainer=flags(toy, part)
        )
        model = sft(recipe, out) / "model"
        for entry in pd.read_parquet(out / "samples.parquet").to_dict("records"):
            minutes = (time.process_time() - started) / 60
            log.append({"part": number, "cpu_minutes": minutes} | {str(key): value for key, value in entry.items()})
    return model, log


def gate_accuracies(toy: Toy, model: Path, limit: int = 200) -> dict[str, float]:
    """Measure the accuracies that decide whether a toy is kept, by benchmark and arm."""
    results = gt.ablate(str(model), bench="ledger", arms=("restart",), limit=limit).results
    names = results["bench"] + "/" + results["arm"]
    return dict(zip(names, results["accuracy"].astype(float), strict=True))


def missed_thresholds(toy: Toy, accuracy: dict[str, float]) -> list[str]:
    """Return the required accuracies that are below 95 %."""
    required = [] if toy.name == "toy-sealed" else [f"ledger-h{level}/memento" for level in range(4)]
    required += [] if toy.name == "toy-open" else ["ledger-h0/restart"]
    return [name for name in required if accuracy[name] < 0.95]


def main() -> None:
    """Train a toy and save it.

    Raises:
        SystemExit: If the training stalled.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=TOYS)
    parser.add_argument(
        "--work", type=Path, default=Path("runs") / "toys", help="folder for the data and runs of all parts"
    )
    parser.add_argument("--out", type=Path, help="folder to write; the package's own by default")
    parser.add_argument("--seed", type=int, help="random seed; the recipe's by default")
    chosen = parser.parse_args()
    toy = TOYS[chosen.name] if chosen.seed is None else replace(TOYS[chosen.name], seed=chosen.seed)
    torch.set_num_threads(1)
    work = chosen.work / f"{toy.name}-{toy.seed}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    model, log = train(toy, work)
    accuracy = gate_accuracies(toy, model)
    if missed_thresholds(toy, accuracy):
        raise SystemExit(f"training with seed {toy.seed} stalled ({accuracy}): try another --seed")
    folder = chosen.out or Path(gt.__file__).parent / "models" / toy.name
    load(str(model)).model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    record = {"recipe": asdict(toy), "accuracy": accuracy, "log": log}
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
