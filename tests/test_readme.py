"""Every command and every example of the README works as typed."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pandas as pd
import pytest

from experiments.toy_leakage import MODELS, select_rows

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def fenced(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


COMMANDS = [line.split("#")[0].strip() for block in fenced("bash") for line in block.splitlines() if line.strip()]


def test_the_readme_begins_with_two_commands() -> None:
    assert COMMANDS[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_targets_exist(command: str) -> None:
    """Their recipes are not run from inside the tests, which one of them runs; `ghosttrace ablate` is, below."""
    planned = subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert planned.returncode == 0, planned.stderr
    assert ("ghosttrace ablate" if "demo" in command else "pytest") in planned.stdout


@pytest.mark.parametrize("block", ["ghosttrace ablate --limit 8", *[b for b in fenced("bash") if "make" not in b]])
def test_commands_work_as_typed(block: str, tmp_path: Path) -> None:
    """Block by block, each in a folder of its own."""
    done = subprocess.run(["bash", "-e", "-c", block], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("command", fenced("console"))
def test_servers_start_as_typed(command: str) -> None:
    """And answer on the port that they take by default."""
    server = subprocess.Popen(shlex.split(command), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(120):
            assert server.poll() is None, server.stderr and server.stderr.read()
            try:
                with urlopen("http://127.0.0.1:8000/v1/models", timeout=5) as answer:
                    assert json.load(answer)["data"][0]["id"] == "toy-open"
                    break
            except URLError:
                time.sleep(1)
        else:
            pytest.fail("it does not answer")
    finally:
        server.terminate()
        server.wait(30)


def test_python_examples_run_in_order(tmp_path: Path) -> None:
    script = "\n".join(fenced("python")) + "\nassert logits.shape[:2] == (1, len(tokens)) and len(run.results) == 3\n"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_figures_in_the_readme_are_the_recorded_ones() -> None:
    """Its table of the two models is `experiments/results/ledger_pair.parquet`, rounded."""
    results = pd.read_parquet(ROOT / "experiments" / "results" / "ledger_pair.parquet")
    for model in ("toy-mixed", "toy-open"):
        for arm in ("memento", "placebo", "restart", "swap"):
            rows = results[(results["model"] == model) & (results["arm"] == arm)].set_index("bench")
            column = "follows_donor" if arm == "swap" else "accuracy"
            cells = [f"{100 * rows.loc[f'ledger-h{level}', column]:.1f}" for level in range(4)]
            what = "`swap`, answers that follow the donor" if arm == "swap" else f"`{arm}`"
            assert f"| {model} | {what} | {' | '.join(cells)} |" in README


def test_files_that_the_readme_names_exist() -> None:
    for name in re.findall(r"\]\((?!https?:)([^)]+)\)|`((?:experiments|figures|benchmarks)/[\w./]+)`", README):
        path = ROOT / (name[0] or name[1])
        assert path.exists(), path


def test_files_that_the_other_documents_name_exist() -> None:
    for document in (ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        said = document.read_text()
        for name in re.findall(r"`((?:ghosttrace|tests|experiments|benchmarks|examples)/[\w./]+)`", said):
            assert (ROOT / name).exists(), f"{document.name}: {name}"


def test_the_gate_was_wrong_as_often_as_the_readme_says() -> None:
    results = pd.read_parquet(ROOT / "experiments" / "results" / "audit_calibration.parquet")
    counts = results.groupby("leak")["verdict"].value_counts().unstack(fill_value=0)
    assert (counts.sum(axis=1) == 100).all() and counts.loc[0.0, "leak"] <= 5 and counts.loc[0.5, "leak"] >= 90
    passed = counts[[name for name in ("not detected", "within the limit") if name in counts]].sum(axis=1)
    for title, column in (
        ("exit 10, a leak", counts["leak"]),
        ("exit 11, not enough data", counts["not enough data"]),
        ("exit 0", passed),
    ):
        assert f"| {title} | {' | '.join(str(count) for count in column)} |" in README


def test_the_defences_in_the_readme_are_the_recorded_ones() -> None:
    rows = pd.read_parquet(ROOT / "experiments" / "results" / "defences.parquet").set_index("defence")
    for name in ("restart", "restart-renumbered", "sealed training", "scrub:3", "scrub:2,3", "leace"):
        assert rows.loc[name, "lost"] == 1.0
    none, one, three = (rows.loc[name] for name in ("none", "partial:1", "partial:3"))
    assert (
        rows.loc[["scrub:3", "scrub:2,3"], "leak"] == none["leak"]
    ).all() and f"all of {none['leak']:.1f} bits" in README
    assert f"leaves {one['leak']:.2f} bits and loses {100 * one['lost']:.0f} points here" in README
    assert f"the last three {three['leak']:.2f} and {100 * three['lost']:.0f};" in README
    assert f"leaves {rows.loc['leace', 'leak']:.1f} bits and loses the\nanswers too" in README
    assert f"spares them, {rows.loc['leace:0.1', 'leak']:.1f}." in README and rows.loc["leace:0.1", "lost"] == 0
    loud, quiet = rows.loc["noise:0.5"], rows.loc["noise:0.3"]
    assert f"(at most {loud['leak_high']:.2f} bits) and loses {100 * loud['lost']:.0f} points" in README
    assert f"0.3 leaves {quiet['leak']:.2f} bits and loses none" in README and quiet["lost"] == 0


def test_the_adapted_drop_in_the_readme_is_the_recorded_one() -> None:
    results = pd.read_parquet(ROOT / "experiments" / "results" / "adapted_drop.parquet")
    last = results[(results["steps"] == 800) & (results["arm"] == "restart")].set_index("bench")["accuracy"]
    h0, h1, h2, h3 = (f"{100 * last[f'ledger-h{level}']:.1f}" for level in range(4))
    assert f"from below 1 % to {h0}, {h1}, {h2} and {h3} % at h = 0 to 3 in 800 steps" in README
    assert (results[(results["steps"] == 0) & (results["arm"] == "restart")]["accuracy"] < 0.01).all()


def test_the_probed_digits_in_the_readme_are_the_recorded_ones() -> None:
    results = pd.read_parquet(ROOT / "experiments" / "results" / "probe_toys.parquet")
    linear = results[(results["probe"] == "linear") & (results["kv"] == "v")]

    def bits(model: str, target: str, hop: int, condition: str) -> list[str]:
        rows = linear[(linear["model"] == model) & (linear["target"] == target) & (linear["hop"] == hop)]
        rows = rows[rows["condition"] == condition].set_index("layer")["bits"]
        return [f"{rows[layer]:.2f}".replace("-0.00", "0.00") for layer in "123"]

    models = ("toy-open", "toy-mixed")
    for hop in range(3):
        cells = " | ".join(" / ".join(bits(model, "hidden-*", hop, "open")) for model in models)
        assert f"| hidden by the mementos | {hop} | {cells} | 0.00 |" in README
        for model, target in product(models, ("hidden-*", "note-*")):
            assert set(bits(model, target, hop, "sealed")) == {"0.00"}
    cells = " | ".join(" / ".join(bits(model, "note-*", 0, "open")) for model in models)
    assert f"| notes the task never needs | 0 | {cells} | 0.00 |" in README
    assert {cell for hop in (1, 2) for cell in bits("toy-mixed", "note-*", hop, "open")} == {"0.00"}
    assert max(cell for hop in (1, 2) for cell in bits("toy-open", "note-*", hop, "open")) == "0.01"
    assert "| notes the task never needs | 1, 2 | 0.01 at most | 0.00 | 0.00 |" in README


def test_the_toy_leakage_in_the_readme_is_the_recorded_one() -> None:
    results = pd.read_parquet(ROOT / "experiments" / "results" / "toy_leakage.parquet")
    trained = select_rows(results, given="text", **MODELS["all tokens"]).set_index("hop")
    one = trained.loc[1]
    assert f"{trained.loc[0, 'bits']:.2f} bits a digit beyond the text" in README
    assert f"nothing ({one['bits']:.4f}\n[{one['bits_low']:+.4f}, {one['bits_high']:+.4f}] one block later" in README
    right = select_rows(results, given="nothing", hop=1, **MODELS["all tokens"])["accuracy"].item()
    assert f"{100 * right:.1f} % right" in README
    later = select_rows(results, given="text", **MODELS["untrained"]).query("hop > 0")["bits"]
    erased = select_rows(results, given="text", **MODELS["untrained, delimiters erased"]).query("hop > 0")["bits"]
    assert f"{min(later.min(), erased.min()):.2f} to {max(later.max(), erased.max()):.2f} bits each" in README


def test_what_sealing_costs_in_the_readme_is_the_recorded_one() -> None:
    rows = pd.read_parquet(ROOT / "experiments" / "results" / "sealed_cost.parquet").set_index("bench")
    h0, *_ = rows.iloc
    assert h0["sealed"] == h0["open"] == 1.0 and h0["n"] == 400 and h0["effect"] == 0
    cells = ", ".join(f"{100 * one:.1f}" for one in rows["sealed"][:3]) + f" and {100 * rows['sealed'].iloc[3]:.1f} %"
    assert f"it reaches {cells}" in README and f"interval ± {100 * h0['high']:.1f})" in README
    assert f"It costs {h0['tokens']:.2f}x the tokens" in README and f"{h0['latency']:.2f}x the time" in README


def test_the_curricula_in_the_readme_are_the_recorded_ones() -> None:
    results = pd.read_parquet(ROOT / "experiments" / "results" / "curriculum.parquet").query("arm == 'memento'")
    right = results.pivot_table(index=["curriculum", "seed"], columns="bench", values="accuracy")
    learned = (right == 1).all(axis=1)
    assert learned.loc["at once"].tolist() == [True, True] and sorted(learned.loc["staged"]) == [False, True]
    stalled = right.loc["staged"][~learned.loc["staged"]].iloc[0]
    assert stalled["ledger-h0"] == 1 and stalled["ledger-h1"] < 0.2
