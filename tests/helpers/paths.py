"""Paths of real data that is not part of the project."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DATA = Path(os.environ.get("GHOSTTRACE_DATA", Path(__file__).parents[3] / "shared"))


def requires_data(*names: str) -> Callable[[Any], Any]:
    """Return a pytest mark that skips a test if one of these files is missing."""
    missing = [name for name in names if not (DATA / name).exists()]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)} in the folder GHOSTTRACE_DATA names")


SMOLLM2 = Path(__file__).parents[2] / ".models" / "smollm2-135m"
requires_smollm2 = pytest.mark.skipif(
    not SMOLLM2.exists(), reason="needs SmolLM2-135M: run `make lm` in this checkout first"
)
