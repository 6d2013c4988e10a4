"""Run folders: what a measuring command leaves behind.

run.json          the whole configuration, hashes, policy, seeds, versions, device, dtype
samples.parquet   one row per sample
summary.json      {"command": …, "valid": bool, "results": [rows]}
figures/          png and svg
"""

import json
import platform
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ghosttrace.errors import UserError

PACKAGES = ("ghosttrace", "torch", "transformers", "numpy", "scipy", "pandas")


@contextmanager
def run_folder(out: Path | None, command: str, model: str) -> Iterator[Path]:
    """The folder of a run: `out`, else `runs/<command>-<model>-<time>`. A refused run leaves none.

    Raises:
        UserError: the folder cannot be made, or holds something already.
    """
    if out is None:
        name = re.sub(r"[^\w.-]+", "-", model).strip("-.")
        out = Path("runs") / f"{command}-{name}-{datetime.now():%Y%m%d-%H%M%S-%f}"
    if out.is_dir() and any(out.iterdir()):
        what = "another run" if (out / "run.json").exists() else "something else"
        raise UserError(f"{out} holds {what}: give --out a new folder")
    try:
        (out / "figures").mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made ({error.strerror}): give --out a folder that can") from error
    try:
        yield out
    except UserError:
        shutil.rmtree(out)
        raise


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
