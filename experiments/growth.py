"""How the cost of each kind of work grows, on tiny random models: `OMP_NUM_THREADS=1 python -m experiments.growth`.

The instruments do four kinds of work: reading traces in a masked pass, decoding, training, and fitting probes. Each is
measured in CPU time while one factor grows and the others keep the value of `BASE`. `python -m experiments.scale` says
what large models would take; that is a model, and this is a measurement.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

import ghosttrace as gt
from ghosttrace.law.expiry import Policy, expiry
from ghosttrace.law.markup import Markup
from ghosttrace.model.attention import attending
from ghosttrace.probing.linear_grid import fit_grid

RESULTS = Path(__file__).parent / "results" / "growth.parquet"
MARKUP, POLICY = Markup(4, 5, 6, 7, assistant_header=(3,)), Policy(True)
BLOCK, MEMENTO = 115, 19  # a tenth of the paper's means
PROMPT_TOKENS, CLASSES, PENALTY, TURNS = 16, 10, 1e-3, 3


@dataclass(frozen=True)
class Sizes:
    """Sizes of one measurement: of the model, of the traces, and of the states that probes are fitted to."""

    tokens: int = 512
    traces: int = 4
    layers: int = 4
    vocabulary: int = 1024
    width: int = 64


BASE = Sizes()
PROBED = replace(BASE, traces=1000)
LAYERS, ROWS, VOCABULARY = (2, 4, 8, 16), (4, 8, 16, 32), (1024, 4096, 16_384, 65_536)
Factors = dict[str, tuple[int, ...]]
OF_MODEL: Factors = {"traces": ROWS, "layers": LAYERS, "vocabulary": VOCABULARY}
GROWN: dict[str, Factors] = {
    "read": {"tokens": (256, 512, 1024, 2048), **OF_MODEL},
    "decode": {"tokens": (64, 128, 256, 512), **OF_MODEL},
    "train": {"tokens": (256, 512, 1024, 2048), **OF_MODEL},
    "fit": {"traces": (1000, 2000, 4000, 8000), "layers": LAYERS, "width": (32, 64, 128, 256)},
}
"""Values of each factor for each kind of work."""


def random_model(sizes: Sizes) -> Any:
    """Return a random model of the Qwen3 architecture."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = Qwen3Config(
        **shape,
        head_dim=32,
        num_hidden_layers=sizes.layers,
        vocab_size=sizes.vocabulary,
        max_position_embeddings=4096,
        eos_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    model.generation_config.eos_token_id = None  # responses of equal length
    return model


def batch(sizes: Sizes) -> dict[str, torch.Tensor]:
    """Return random traces with blocks and mementos, all of one length."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(sizes.traces):
        ids = [1, 3]
        while len(ids) < sizes.tokens:
            ids += [4, *rng.integers(8, 1000, BLOCK), 5, 6, *rng.integers(8, 1000, MEMENTO), 7]
        rows.append(ids[: sizes.tokens])
    expires_at = np.stack([np.minimum(expiry(ids, MARKUP, POLICY), sizes.tokens) for ids in rows])
    return {"input_ids": torch.tensor(rows), "expiry": torch.from_numpy(expires_at)}


def reading(sizes: Sizes) -> Callable[[], None]:
    """Return a masked pass over traces, with log-probabilities of all tokens."""
    model, given = random_model(sizes), batch(sizes)

    def run() -> None:
        with attending(model), torch.no_grad():
            model(**given, use_cache=False).logits.log_softmax(-1)

    return run


def training(sizes: Sizes) -> Callable[[], None]:
    """Return a forward and a backward pass over traces."""
    model, given = random_model(sizes), batch(sizes)

    def run() -> None:
        with attending(model):
            logits = model(**given, use_cache=False).logits
            torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), given["input_ids"][:, 1:].flatten()
            ).backward()
        model.zero_grad(set_to_none=True)

    return run


def decoding(sizes: Sizes) -> Callable[[], None]:
    """Return the decoding of responses of equal length. Random tokens hold hardly any finished block."""
    model, rng = random_model(sizes), np.random.default_rng(0)
    prompts = [[1, *rng.integers(8, 1000, PROMPT_TOKENS).tolist(), 3] for _ in range(sizes.traces)]
    requests = [gt.Request(prompt, (0, number, 0)) for number, prompt in enumerate(prompts)]

    def run() -> None:
        gt.generate(model, requests, MARKUP, POLICY, gt.Sampling(sizes.tokens, 1.0))

    return run


def fitting(sizes: Sizes) -> Callable[[], None]:
    """Return the fit of linear probes of one digit, one per layer."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, sizes.traces)
    codes = rng.standard_normal((CLASSES, sizes.width))
    states = rng.standard_normal((sizes.layers, sizes.traces, sizes.width)) + 0.3 * codes[labels]
    features, targets = torch.from_numpy(states.astype(np.float32)), torch.from_numpy(labels[None])
    return lambda: void(fit_grid(features, targets, [CLASSES], PENALTY))


def void(_: object) -> None:
    """Drop a value."""


WORK: dict[str, Callable[[Sizes], Callable[[], None]]] = {
    "read": reading,
    "decode": decoding,
    "train": training,
    "fit": fitting,
}


def seconds(run: Callable[[], None]) -> float:
    """Return the least CPU time of a few runs, in seconds, after one that warms up."""
    run()
    times = []
    for _ in range(TURNS):
        begin = time.process_time()
        run()
        times.append(time.process_time() - begin)
    return min(times)


def main() -> None:
    """Measure everything and write `experiments/results/growth.parquet`."""
    torch.set_num_threads(1)
    rows = []
    for work, factors in GROWN.items():
        base = PROBED if work == "fit" else replace(BASE, tokens=128) if work == "decode" else BASE
        for factor, values in factors.items():
            for value in values:
                took = seconds(WORK[work](replace(base, **{factor: value})))
                rows.append({"work": work, "factor": factor, "value": value, "seconds": took})
                print(rows[-1], flush=True)
    pd.DataFrame(rows).to_parquet(RESULTS, index=False)


if __name__ == "__main__":
    main()
