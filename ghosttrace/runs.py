"""Run folders: what a measuring command leaves behind.

run.json          the whole configuration, hashes, policy, seeds, versions, device, dtype
samples.parquet   one row per sample
summary.json      {"command": …, "valid": bool, "results": [rows]}
figures/          png and svg
"""

import json
import platform
import re
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ghosttrace.errors import UserError

PACKAGES = ("ghosttrace", "torch", "transformers", "numpy", "scipy", "pandas")


def new_folder(out: Path | None, command: str, model: str) -> Path:
    """Name the folder of a run, still to be made: `out`, else `runs/<command>-<model>-<time>`.

    Raises:
        UserError: the folder holds something already.
    """
    if out is None:
        name = re.sub(r"[^\w.-]+", "-", model).strip("-.")
        out = Path("runs") / f"{command}-{name}-{datetime.now():%Y%m%d-%H%M%S-%f}"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "another run" if (out / "run.json").exists() else "something else"
        raise UserError(f"{out} holds {what}: give --out a new folder")
    return out


def versions() -> dict[str, str]:
    """What the results depend on."""
    return {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that a person can read."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_summary(folder: Path, command: str, valid: bool, rows: Sequence[dict[str, Any]], **more: Any) -> None:
    """Write summary.json."""
    write_json(folder / "summary.json", {"command": command, "valid": valid, **more, "results": list(rows)})


def write_samples(folder: Path, samples: pd.DataFrame) -> None:
    """Write samples.parquet."""
    samples.to_parquet(folder / "samples.parquet", index=False)


def write_figure(folder: Path, name: str, figure: Figure) -> None:
    """Write figures/<name>.png and .svg."""
    for kind in ("png", "svg"):
        figure.savefig(folder / "figures" / f"{name}.{kind}", dpi=150, bbox_inches="tight")
