"""What the allocator settings save: `python benchmarks/allocator.py` (Linux with glibc; needs `make lm`).

Each command runs as a process of its own, with the settings of `ghosttrace.cli.allocator` and without, in alternation.
CPU time is compared, because other work on the machine disturbs it less than wall time.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

RESULT = Path(__file__).parent / "results" / "allocator.json"
SMALL = "--samples 300 --layers 3 --hops 0 --no-mlp"
STORY_SFT = "sft --model smollm2-open --kernel matmul --config examples/train/smollm2-story.yaml --max_steps 6"
COMMANDS = {
    "sft, SmolLM2": f"{STORY_SFT} --save_strategy no --data {{story}}",
    "ablate, SmolLM2": "ablate --model smollm2-open --bench story-complete-derived --limit 8 --arms restart",
    "bits, SmolLM2": "bits --model smollm2-open --bench story-complete-derived --limit 8 --arms restart",
    "sft, toy": "sft --model toy-open --data {ledger} --config examples/train/toy.yaml",
    "rl, toy": "rl --model toy-open --bench ledger-h1 --config examples/train/toy-rl.yaml",
    "ablate, toy": "ablate --model toy-open --bench ledger-h1 --limit 100 --arms restart",
    "bits, toy": "bits --model toy-open --bench ledger-h1 --limit 100",
    "probe, toy": f"probe --model toy-open --bench ledger-h1 {SMALL}",
    "patch, toy": "patch --model toy-open --bench ledger-h1 --kind swap --limit 4",
    "audit, toy": f"audit --model toy-open --bench ledger-h3 --attacks attribute --utility-limit 20 {SMALL}",
}
"""Commands by name; {story} and {ledger} are training rows."""

PROGRAM = """
from ghosttrace.cli import allocator, main
if {keep}:
    allocator.keep_freed_memory()
allocator.COMMANDS = frozenset()
main.main()
"""


def measure(command: list[str], environment: dict[str, str], keep: bool) -> dict[str, float]:
    """Run a command and return its CPU seconds, the share of them in the kernel, and its peak memory in GB.

    The settings are made before the command, whether or not the command line makes them for it.
    """
    program = [sys.executable, "-c", PROGRAM.format(keep=keep), *command]
    process = subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 10, 11):  # an audit's verdict
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
    seconds = usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "kernel": usage.ru_stime / seconds, "memory": usage.ru_maxrss / 1e6}


def compare(command: list[str], folder: Path, runs: int) -> dict[str, Any]:
    """Run a command with the settings and without, in alternation."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    found: dict[str, list[dict[str, float]]] = {"with": [], "without": []}
    for _ in range(runs):
        for name, runs_of_name in found.items():
            out = folder / "run"
            runs_of_name.append(measure([*command, "--out", str(out)], clean, keep=name == "with"))
            shutil.rmtree(out)
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(found["with"], found["without"], strict=True)]
    return {"ratios": ratios, **found}


def main() -> None:
    """Measure the commands and write the result of each as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--story", help="training rows of story, see experiments/story_rows.py; for sft on SmolLM2")
    parser.add_argument("--only", help="measure the commands whose name contains this")
    given = parser.parse_args()
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    with TemporaryDirectory() as folder:
        ledger = f"{folder}/ledger"
        make = f"ablate --model toy-open --bench ledger-h0 --limit 40 --arms restart --out {ledger}"
        measure(make.split(), dict(os.environ), keep=False)
        for name, command in COMMANDS.items():
            if (given.only and given.only not in name) or ("{story}" in command and given.story is None):
                continue
            filled = command.format(story=given.story, ledger=ledger)
            results[name] = compare(filled.split(), Path(folder), given.runs)
            print(name, statistics.median(results[name]["ratios"]), flush=True)
            RESULT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
