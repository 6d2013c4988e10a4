"""Claim: the restart drop of a pretrained memento model is information where its notes leave a number out.

The bundled checkpoint `smollm2-open` (`examples/train/smollm2-story.yaml`; it needs `make lm`) on held-out names and
wordings of `story`, greedy, in four conditions. `format` is the share of responses that end by themselves with finished
blocks and all delimiters in order.

Other checkpoints of the recipe are measured by `--model FOLDER --name NAME`, in fewer conditions by `--conditions`.

Writes `experiments/results/story_channel.parquet` (columns of `ghosttrace.ablation.summary.summarise`, with the hash of
the merged weights and versions); other checkpoints' rows stay. `python experiments/story_channel.py` resumes an
interrupted run.
"""

import argparse
import json
from pathlib import Path

import pandas as pd
import torch

import ghosttrace as gt
from ghosttrace.ablation.result import AblationResult
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.training.examples import delimiter_error

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results" / "story_channel.parquet"
MODEL = "smollm2-open"
ARMS = ("memento", "placebo", "restart", "restart-bare", "restart-renumbered", "swap")
CONDITIONS = ("needed-derived", "needed-observed", "complete-derived", "unneeded-observed")
LIMIT = 80


def well_formed(checkpoint: Checkpoint, samples: pd.DataFrame) -> pd.Series:
    """Return for each sample whether it ended by itself with finished blocks and all delimiters in order."""

    def check(sample: pd.Series) -> bool:
        tokens = [*sample["prompt_ids"], *sample["response_ids"]]
        error = delimiter_error(tokens, checkpoint.markup, checkpoint.policy)
        return bool(sample["finish"] == "eos" and sample["blocks"] > 0 and error is None)

    return samples.apply(check, axis=1)


def summary(checkpoint: Checkpoint, run: AblationResult, name: str) -> pd.DataFrame:
    """Return the results of a run with the checkpoint's name, the share of well-formed responses and the provenance."""
    samples = run.samples
    shares = samples.assign(format=well_formed(checkpoint, samples)).groupby(["bench", "arm"])["format"].mean()
    results = run.results.merge(shares.reset_index(), on=["bench", "arm"])
    configuration = run.configuration
    return results.assign(
        model=name,
        model_sha256=configuration["sha256"]["model"],
        versions=json.dumps(configuration["versions"]),
        valid=run.valid,
        failures="; ".join(run.failures),
    )


def measure(given: argparse.Namespace) -> pd.DataFrame:
    """Run the arms in the conditions, one run folder each."""
    checkpoint, parts = gt.load(given.model), []
    for condition in given.conditions.split(","):
        folder, bench = given.work / given.name / condition, f"story-{condition}"
        if (folder / "summary.json").exists():
            run = AblationResult.open(folder)
        else:
            settings = {"limit": given.limit, "batch_size": given.limit}
            where = {"resume": folder} if folder.exists() else {"out": folder}
            run = gt.ablate(checkpoint, bench, given.arms, **settings, **where)
        parts.append(summary(checkpoint, run, given.name))
        print(parts[-1][["bench", "arm", "accuracy", "effect", "effect_low", "effect_high", "format"]], flush=True)
    return pd.concat(parts, ignore_index=True)


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "story_channel")
    parser.add_argument("--limit", type=int, default=LIMIT, help="problems per condition")
    parser.add_argument("--model", default=MODEL, help="bundled name, or folder of a trained model")
    parser.add_argument("--name", default=MODEL, help="name of the checkpoint in the results")
    parser.add_argument("--conditions", default=",".join(CONDITIONS))
    parser.add_argument("--arms", default=",".join(ARMS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = measure(given)
    if RESULTS.exists():
        others = pd.read_parquet(RESULTS)
        again = others["model"].eq(given.name) & others["bench"].isin(results["bench"])
        results = pd.concat([others[~again], results], ignore_index=True)
    results.to_parquet(RESULTS, index=False)
    print(results.to_string())


if __name__ == "__main__":
    main()
