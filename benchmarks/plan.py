"""How well `ghosttrace plan` predicts a run: `OMP_NUM_THREADS=1 python benchmarks/plan.py`.

Each command is planned and then run in full, one right after the other, because other work on the machine changes. The
plan's time is compared with the run's time without the seconds in which it waited for a core that others had.
"""

import argparse
import json
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ghosttrace.planning.measure import Measurement, measure
from ghosttrace.planning.run import RunPlan, plan

RESULT = Path(__file__).parent / "results" / "plan.json"
PROBES = "--bench ledger-h1 --hops 0"
COMMANDS = {
    "ablate": "ablate --model toy-mixed --bench ledger-h1 --arms restart --batch-size 64 --limit 2048",
    "bits": "bits --model toy-mixed --bench ledger-h1 --limit 700",
    "probe": f"probe --model toy-mixed {PROBES} --layers 2,3 --no-mlp --samples 3000",
    "audit": f"audit --model toy-open {PROBES} --layers 3 --kv v --attacks attribute --utility-limit 20 --samples 2000",
    "sft": "sft --model toy-open --data {rows} --config examples/train/toy.yaml --disable_tqdm true --max_steps 300",
}
"""Commands by instrument; {rows} are training rows."""


def row(planned: RunPlan, measured: Measurement) -> dict[str, Any]:
    """Return what was predicted and what was measured."""
    (cost,) = planned.costs
    predicted = {"seconds": asdict(cost.seconds), "busy_seconds": cost.busy_seconds.value}
    predicted |= {"memory": cost.memory, "peak_disk": cost.peak_disk, "disk": cost.disk}
    found = {"seconds": measured.undisturbed, "busy_seconds": measured.seconds}
    found |= {name: getattr(measured, name) for name in ("memory", "peak_disk", "disk")}
    return {
        "command": planned.command.split(" --data ")[0],
        "amount": planned.amount,
        "unit": planned.unit,
        "calibration_sizes": [run.size for run in planned.runs],
        "calibration_seconds": sum(run.undisturbed for run in planned.runs),
        "predicted": predicted,
        "measured": found,
        "steps": {name: step.seconds for name, step in measured.steps.items()},
    }


def main() -> None:
    """Plan and run each command, and write the result as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    only = parser.parse_args().only
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    with TemporaryDirectory() as folder:
        rows = Path(folder) / "rows"
        if "sft" in only:
            make = "ablate --model toy-open --bench ledger-h0 --limit 200 --arms restart"
            measure(shlex.split(make), rows, 200, 200)
        for name in only:
            command = COMMANDS[name].format(rows=rows / "run")
            planned = plan(command)
            measured = measure(shlex.split(command), Path(folder) / name, planned.size, planned.amount)
            shutil.rmtree(Path(folder) / name)
            results[name] = row(planned, measured)
            ratio = results[name]["predicted"]["seconds"]["value"] / measured.undisturbed
            print(f"{name}: predicted / measured {ratio:.2f}", flush=True)
            RESULT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
