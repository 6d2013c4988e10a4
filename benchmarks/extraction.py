"""Cost of feature extraction relative to a plain forward pass: `python benchmarks/extraction.py`.

All variants read the same random traces with the same random weights, in the same batches. They run alternately (A B C
A B C …), so only ratios matter. The plain pass is transformers' own: causal sdpa, no cache, logits of the last token.
The masked pass uses memento attention and stores nothing; its difference from the plain pass is the cost of a mask in
sdpa. Extraction also reads keys and values of three mementos in every layer, hashes the weights once and writes a
shard. Over a sealed cache each memento is processed twice, so the attainable ratio is the ratio of the numbers of
tokens.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from decoding import BLOCK, MARKUP, MEMENTO, POLICY, PROMPT, SIZES, make_model
from transformers import PreTrainedModel

from ghosttrace.data.task import Sample, Target, Task
from ghosttrace.law.layout import open_layout, sealed_layout
from ghosttrace.model.attention import attending
from ghosttrace.model.checkpoint import Checkpoint, load
from ghosttrace.model.states import model_inputs
from ghosttrace.probing.carriers import Carrier
from ghosttrace.probing.features import StateSelection, extract_features

BLOCKS, BATCH = 4, 4
CARRIERS = tuple(Carrier("memento", hop) for hop in range(3))


def make_task(traces: int, vocabulary: int) -> Task:
    """Make a task of random traces of four blocks; the secret is the first token of the second block."""
    rng = torch.Generator().manual_seed(0)

    def random_tokens(n: int) -> list[int]:
        return torch.randint(8, vocabulary, (n,), generator=rng).tolist()

    samples = []
    for number in range(traces):
        ids = random_tokens(PROMPT)
        for _ in range(BLOCKS):
            ids += [MARKUP.block_start, *random_tokens(BLOCK), MARKUP.block_end]
            ids += [MARKUP.summary_start, *random_tokens(MEMENTO), MARKUP.summary_end]
        secret_index = PROMPT + BLOCK + MEMENTO + 5
        samples.append(Sample(ids, str(number), str(number), 1, (secret_index,), (number % 2,)))
    return Task("random", tuple(samples), (Target("parity", ("even", "odd")),))


@torch.no_grad()
def plain(model: PreTrainedModel, tokens: torch.Tensor) -> None:
    """Run a plain forward pass of transformers per batch."""
    for batch in tokens.split(BATCH):
        model(input_ids=batch, use_cache=False, logits_to_keep=1)


@torch.no_grad()
def masked(model: PreTrainedModel, task: Task) -> None:
    """Run a forward pass with memento attention per batch."""
    layouts = [open_layout(sample.ids, MARKUP, POLICY) for sample in task.samples]
    with attending(model):
        for begin in range(0, len(layouts), BATCH):
            model(**model_inputs(layouts[begin : begin + BATCH], model), use_cache=False, logits_to_keep=1)


def read(checkpoint: Checkpoint, task: Task, cache: str) -> int:
    """Extract features into an empty folder and return the number of bytes written."""
    with tempfile.TemporaryDirectory() as folder:
        selection = StateSelection(cache, CARRIERS, tuple(range(checkpoint.model.config.num_hidden_layers)))
        batch_tokens = BATCH * len(task.samples[0].ids)
        features = extract_features(checkpoint, task, selection, Path(folder), batch_tokens=batch_tokens)
        return sum(path.stat().st_size for path in features.paths)


def compare(name: str, traces: int, turns: int, device: str) -> dict[str, object]:
    """Measure time ratios at one model size."""
    size = SIZES[name]
    model = make_model(size, device, torch.float32)
    checkpoint = Checkpoint("random", model, load("toy-open").tokenizer, MARKUP, POLICY)
    task = make_task(traces, size.vocabulary)
    tokens = torch.tensor([sample.ids for sample in task.samples], device=device)
    variants = {
        "plain": lambda: plain(model, tokens),
        "masked": lambda: masked(model, task),
        "open": lambda: read(checkpoint, task, "open"),
        "sealed": lambda: read(checkpoint, task, "sealed"),
    }
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    for turn in range(turns + 1):  # the first turn warms up
        for variant, run in variants.items():
            started = time.perf_counter()
            run()
            if turn:
                times[variant].append(time.perf_counter() - started)
    ratios = {
        variant: [a / b for a, b in zip(times[variant], times["plain"], strict=True)]
        for variant in ("masked", "open", "sealed")
    }
    sealed_tokens = len(sealed_layout(task.samples[0].ids, MARKUP, POLICY).tokens)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "traces": traces,
        "tokens": tokens.shape[1],
        "plain_seconds": times["plain"],
        "ratio": {variant: statistics.median(values) for variant, values in ratios.items()},
        "ratios": ratios,
        "sealed_tokens_ratio": sealed_tokens / tokens.shape[1],
        "bytes_written": read(checkpoint, task, "open"),
    }


def main() -> None:
    """Run the comparison and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "mid"], choices=SIZES)
    parser.add_argument("--traces", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "extraction.json")
    chosen = parser.parse_args()
    record: dict[str, object] = {
        "torch": torch.__version__,
        "device": chosen.device,
        "threads": torch.get_num_threads(),
    }
    for name in chosen.sizes:
        record[name] = compare(name, chosen.traces, chosen.turns, chosen.device)
        print(name, json.dumps(record[name]), flush=True)
    chosen.out.parent.mkdir(exist_ok=True)
    chosen.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
