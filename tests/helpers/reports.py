"""Run folders for the report tests: three problems, two repetitions, five arms."""

import json
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd

from ghosttrace.ablation.arms import ARMS as KNOWN
from ghosttrace.law.expiry import MementoLaw, Policy, alive, expiry
from ghosttrace.law.markup import Markup

DELIMITERS = {"<|block_start|>": 6, "<|block_end|>": 7, "<|summary_start|>": 8, "<|summary_end|>": 9}
MARKUP = Markup(*DELIMITERS.values(), assistant_header=(3,), turn_end=1)
ARMS = ("memento", "full", "placebo", "restart", "swap")
HOSTILE = (
    "<script>window.pwned = 1</script>",
    "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>",
    "<!-- <script> {{ 7 * 7 }} {% raw %} ${window.pwned = 1}",
    "设 $x^2 + y^2 = r^2$，所以 \\frac{\\pi}{4} & 🙂👩‍👩‍👧 \u2028 <b>bold</b> &lt;i&gt;",
)
KEEP_LAST_N_BLOCKS = {"full": -1, "memento": 0, "placebo": 0, "restart": 0, "swap": 0}
CONFIG: dict[str, Any] = {
    "command": "ablate",
    "model": "ours/qwen3-8b-<memento>",
    "sha256": {"model": "ab" * 32, "tokenizer": "cd" * 32},
    "policy": Policy(False).to_dict(),
    "markup": {**{name[2:-2]: token for name, token in DELIMITERS.items()}, "assistant_header": [3], "turn_end": 1},
    "settings": {"arms": list(ARMS), "seed": 0, "part": {"layers": None, "heads": None, "kv": ["k", "v"]}},
    "options": {"model": "ours/qwen3-8b-<memento>", "bench": "aime24", "seed": 0, "mask_delimiters": False},
    "arms": {
        name: {
            **KNOWN[name]().describe(MementoLaw(MARKUP, Policy(False))),
            "policy": Policy(False, keep).to_dict(),
        }
        for name, keep in KEEP_LAST_N_BLOCKS.items()
    },
    "benches": {"aime24": {"ceiling": None}, "hmmt25": {"ceiling": None}},
    "versions": {"torch": "2.13.0"},
}


def sample(problem: int, repetition: int, arm: str, length: int) -> dict[str, Any]:
    """Return a row of samples.parquet; every word is a token, and the arms with an open channel give equal samples."""
    right = arm not in ("restart", "swap")
    rng = np.random.default_rng([problem, repetition, 0 if right else ARMS.index(arm)])
    answer = str(200 + problem)
    extracted = answer if right else str(900 + repetition)
    words = ["<think>\n"]
    for part in range(3):
        text = [HOSTILE[(problem + part) % len(HOSTILE)], *(f" step{n}" for n in rng.integers(0, 99, length))]
        words += ["<|block_start|>", *text, "<|block_end|>", "<|summary_start|>", f"so far {part}", "<|summary_end|>"]
    words += ["</think>", "\nThe answer is $\\boxed{", extracted, "}$, yes, ", extracted, "<|im_end|>"]
    ids = [DELIMITERS.get(word, 100 + crc32(word.encode()) % 2**30) for word in words]
    held = alive(expiry([1, 2, 3, *ids], MARKUP, Policy(False, -1 if arm == "full" else 0)))
    return {
        "bench": "aime24",
        "arm": arm,
        "problem": f"p{problem}",
        "repetition": repetition,
        "correct": right,
        "extracted": extracted,
        "rule": "boxed/integer",
        "answer": answer,
        "donor_answer": "900" if arm == "swap" else None,
        "finish": "eos",
        "blocks": 3,
        "response_tokens": len(ids),
        "peak_kv_tokens": int(held[:-1].max()),
        "auc_kv_tokens": int(held[3:-1].sum()),
        "prompt": f"Find <b>{problem}</b>.",
        "prompt_ids": [1, 2, 3],
        "response_ids": ids,
        "response": "".join(words),
    }


def result(arm: str, accuracy: float, effect: float, worse: int, p: float | None) -> dict[str, Any]:
    """Return a row of results."""
    row = {"bench": "aime24", "arm": arm, "n_problems": 3, "n_samples": 6}
    row |= {"accuracy": accuracy, "accuracy_low": accuracy - 0.0512, "accuracy_high": accuracy + 0.0487}
    row |= {"effect": effect, "effect_low": effect - 0.0311, "effect_high": effect + 0.0229}
    row |= {"effect_low_joint": effect - 0.0444, "effect_high_joint": effect + 0.0333, "equivalent": None}
    row |= {"better": 0, "worse": worse, "detectable": 0.0613, "p": p, "p_holm": p}
    row |= {"rests_on_few": False, "n_clusters": 3}
    row |= {"significant": p is not None and p <= 0.05, "blocks": 2.75, "without_blocks": 1, "unextracted": 2}
    row |= {"peak_kv_tokens": 7000.4, "auc_kv_tokens": 6.6e7, "peak_kv_bytes": 1.0322e9, "auc_kv_bytes": 9.73e12}
    return row | {"truncated": 4, "follows_donor": None, "keeps_original": None, "neither": None}


RESULTS = [
    result("memento", 0.661, 0.0, 0, None),
    result("full", 0.7, 0.039, 0, 0.25),
    result("placebo", 0.66, -0.001, 1, 1.0),
    result("restart", 0.508, -0.153, 3, 0.00003),
    result("swap", 0.1, -0.561, 3, 0.004) | {"follows_donor": 0.875, "keeps_original": 0.1, "neither": 0.025},
]


def row_at_k(arm: str, k: int) -> dict[str, Any]:
    """Return a row of pass@k and maj@k."""
    row = {"bench": "aime24", "arm": arm, "k": k, "pass_at_k": 0.6 + k / 20, "maj_at_k": 0.6}
    return row | {"pass_low": 0.5, "pass_high": 0.8, "maj_low": 0.4, "maj_high": 0.7}


SUMMARY: dict[str, Any] = {"command": "ablate", "valid": True, "failures": [], "results": RESULTS}
SUMMARY |= {"headline_arm": "restart"}
SUMMARY |= {"at_k": [row_at_k(arm, k) for arm in ARMS for k in (1, 2)]}


def write_run(folder: Path, length: int = 20, without: tuple[str, ...] = (), **summary: Any) -> Path:
    """Write a run: `length` words per block, without the columns `without`, with entries `summary` replaced."""
    folder.mkdir(exist_ok=True)
    rows = [sample(problem, repetition, arm, length) for arm in ARMS for problem in range(3) for repetition in range(2)]
    samples = pd.DataFrame(rows).drop(columns=list(without))
    samples.to_parquet(folder / "samples.parquet", index=False, row_group_size=4)
    (folder / "run.json").write_text(json.dumps(CONFIG))
    (folder / "summary.json").write_text(json.dumps(SUMMARY | summary))
    return folder


def write_pair(folder: Path) -> Path:
    """Write a finished run of two benchmarks; in the second every answer is correct and every effect is zero."""
    write_run(folder)
    samples = pd.read_parquet(folder / "samples.parquet")
    other = samples.assign(bench="hmmt25", problem="h" + samples["problem"], correct=True, extracted=samples["answer"])
    pd.concat([samples, other]).to_parquet(folder / "samples.parquet", index=False)
    still = [result(arm, 1.0, 0.0, 0, None if arm == "memento" else 1.0) | {"bench": "hmmt25"} for arm in ARMS]
    at_k = [*SUMMARY["at_k"], *(row | {"bench": "hmmt25"} for row in SUMMARY["at_k"])]
    (folder / "summary.json").write_text(json.dumps(SUMMARY | {"results": RESULTS + still, "at_k": at_k}))
    return folder
