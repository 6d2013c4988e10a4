"""Claim: how much a pretrained model that no one trained for erasure keeps of what left its cache, law by law.

The model is SmolLM2-135M-Instruct as published, quantised to four bits by a third party (`make lm`). It measures three
things:

- probes: a number in the result of a tool (`agent-erased`), by law, layer, carrier and distance, open and sealed;
- bits: what `restart` and `restart-renumbered` do to the log-probability of the true text, on excerpts of two real
  traces and on the sessions themselves;
- accuracy: whether the model answers from what left, on `agent-noted` and `agent-erased`.

Writes `stock_probes.parquet`, `stock_bits.parquet` and `stock_accuracy.parquet` into `experiments/results`.
`make lm`, then `python experiments/stock_model.py --traces FILES`: about an hour on one core. An interrupted run goes
on where it stopped, and `--only stock_bits` runs one measurement; each run replaces its own rows of a table alone.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

import ghosttrace as gt
from ghosttrace.bench.agent import example_chats
from ghosttrace.data.chats import parse_chat
from ghosttrace.data.read import TraceText, read_traces
from ghosttrace.data.tokens import TokenTrace, to_token_trace
from ghosttrace.model.checkpoint import Checkpoint

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
MODEL = "smollm2-135m"
PROBED = {  # law: carriers
    "tools:0": ("delimiters", "after", "last"),
    "window:110,40": ("after", "last"),
    "chunks:40,12": ("after", "last"),
}
LAYERS = (0, 4, 9, 14, 19, 24, 29)
PROBE_SAMPLES, EXCERPTS, EXCERPT_TOKENS, SESSIONS, PROBLEMS = 400, 48, 300, 24, 60
BITS_LAWS = {"excerpts": ("window:128,64", "chunks:128,32"), "sessions": ("tools:0", "window:110,40")}
DELIMITER = re.compile(r"<\|(?:block|summary)_(?:start|end)\|>")
BITS_ARMS = ["restart", "restart-renumbered"]
KEYS = {"stock_probes": ("law",), "stock_bits": ("law", "source"), "stock_accuracy": ("law", "bench")}


def show(step: str, done: int, total: int) -> None:
    """Print the progress of a run."""
    if done == total or done % 50 == 0:
        print(f"{step} {done}/{total}", flush=True)


def place(folder: Path) -> dict[str, Any]:
    """Return the arguments that begin a run in a folder, or go on with it."""
    return ({"resume": folder} if folder.exists() else {"out": folder}) | {"progress": show}


def probes(law: str, work: Path) -> pd.DataFrame:
    """Probe the model for the number in the first tool result under a law."""
    run = gt.probe(
        MODEL,
        "agent-erased",
        law=law,
        block=0,
        samples=PROBE_SAMPLES,
        carriers=PROBED[law],  # type: ignore[arg-type]
        hops=(0, 1, 2),
        layers=LAYERS,
        mlp=False,
        **place(work / f"probe-{law.replace(':', '-')}"),
    )
    return run.results.assign(law=law, failures="; ".join(run.failures))


def excerpts(checkpoint: Checkpoint, files: Sequence[str]) -> list[TokenTrace]:
    """Return consecutive stretches of the real traces, each after its own problem."""
    found = []
    for file in files:
        for number, text in enumerate(each for each in read_traces(file) if isinstance(each, TraceText)):
            plain = replace(text, response=DELIMITER.sub("\n", text.response))  # the model knows no delimiters
            trace = to_token_trace(checkpoint, "excerpts", f"{Path(file).name}/{number}", plain)
            for begin in range(0, len(trace.response) - EXCERPT_TOKENS, EXCERPT_TOKENS):
                stretch = trace.response[begin : begin + EXCERPT_TOKENS]
                found.append(TokenTrace("excerpts", f"{trace.name}/{begin}", trace.prompt[-20:], stretch))
    step = max(1, len(found) // EXCERPTS)
    return found[::step][:EXCERPTS]


def sessions(checkpoint: Checkpoint) -> list[TokenTrace]:
    """Return generated sessions, without their last question."""
    chats = [parse_chat(row, "sessions") for row in example_chats(SESSIONS, 1)]
    return [to_token_trace(checkpoint, "sessions", str(number), chat) for number, chat in enumerate(chats)]


def bits(source: str, law: str, files: Sequence[str], work: Path) -> pd.DataFrame:
    """Measure the bits that sealing costs the true text of a source under a law."""
    checkpoint = gt.load(MODEL, dtype="float32", law=law)
    traces = excerpts(checkpoint, files) if source == "excerpts" else sessions(checkpoint)
    folder = work / f"bits-{source}-{law.replace(':', '-')}"
    run = gt.bits(checkpoint, traces, arms=BITS_ARMS, batch_tokens=1024, **place(folder))
    return run.results.assign(law=law, failures="; ".join(run.failures))


def accuracy(law: str, work: Path) -> pd.DataFrame:
    """Measure accuracy on the sessions under a law, and with nothing erased."""
    run = gt.ablate(MODEL, "agent", ["full", "restart"], law=law, limit=PROBLEMS, **place(work / "ablate"))
    return run.results.assign(law=law, failures="; ".join(run.failures))


def record(name: str, rows: pd.DataFrame, keys: Sequence[str]) -> None:
    """Write rows into a table of results in place of the earlier ones with the same keys."""
    file = RESULTS / f"{name}.parquet"
    if file.exists():
        earlier = pd.read_parquet(file)
        again = pd.MultiIndex.from_frame(earlier[list(keys)]).isin(pd.MultiIndex.from_frame(rows[list(keys)]))
        rows = pd.concat([earlier[~again], rows])
    rows.to_parquet(file, index=False)


def main() -> None:
    """Run the measurements, and rewrite a table after each of its parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", nargs="+", required=True, help="files with real traces")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "stock_model")
    parser.add_argument("--only", nargs="+", choices=list(KEYS), default=list(KEYS), help="measurements to run")
    parser.add_argument("--laws", nargs="+", help="laws to run (default: all)")
    given = parser.parse_args()
    jobs: list[tuple[str, str, Callable[[], pd.DataFrame]]] = [
        *(("stock_probes", law, partial(probes, law, given.work)) for law in PROBED),
        *(
            ("stock_bits", law, partial(bits, source, law, given.traces, given.work))
            for source, laws in BITS_LAWS.items()
            for law in laws
        ),
        ("stock_accuracy", "tools:0", partial(accuracy, "tools:0", given.work)),
    ]
    for name, law, job in jobs:
        if name in given.only and law in (given.laws or [law]):
            rows = job()
            record(name, rows, KEYS[name])
            print(name, law, rows["failures"].iloc[0] or "valid", flush=True)


if __name__ == "__main__":
    main()
