"""Padded batches, open and sealed, and the examples of docs/bridges.md, for the tests of both bridges."""

import copy
import re
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ghosttrace.law.expiry import NEVER, Policy
from ghosttrace.law.layout import Layout, open_layout, sealed_layout
from ghosttrace.model.checkpoint import Checkpoint, load_tokenizer
from ghosttrace.model.states import States, read_states
from helpers.families import tiny
from helpers.traces import MARKUP, trace

DOCS = Path(__file__).parents[2] / "docs" / "bridges.md"
LAYOUTS = {"open": open_layout, "sealed": sealed_layout}
POLICIES = (Policy(True), Policy(False), Policy(True, erase_at="before_summary_end"))
LENGTHS = (5, 3, 4)  # in blocks; unequal, so that rows are padded


def tiny_checkpoint(family: str) -> Checkpoint:
    """Return a copy of a tiny model with the architecture name that TransformerLens needs."""
    model = copy.deepcopy(tiny(family))
    model.config.architectures = [type(model).__name__]
    return Checkpoint(family, model, load_tokenizer("toy-mixed"), MARKUP, Policy(True))


def batch(kind: str) -> tuple[list[Layout], list[np.ndarray]]:
    """Return layouts of three sequences of different lengths and policies, and 20 token indices in each."""
    sequences = [trace(seed, blocks) for seed, blocks in enumerate(LENGTHS)]
    layouts = [LAYOUTS[kind](tokens, MARKUP, policy) for tokens, policy in zip(sequences, POLICIES, strict=True)]
    return layouts, [np.linspace(0, len(tokens) - 1, 20).astype(np.int64) for tokens in sequences]


def without_erasure(layouts: list[Layout]) -> list[Layout]:
    """Return the layouts with no erasure: plain causal attention."""
    return [replace(layout, expiry=np.full_like(layout.expiry, NEVER)) for layout in layouts]


def check_states(read: Callable[[list[Layout], list[np.ndarray]], States], family: str, kind: str) -> None:
    """Check that a bridge reads the same states as `read_states`, and that causal states (positive control) differ."""
    layouts, indices = batch(kind)
    expected = read_states(tiny(family), layouts, indices)
    actual, causal = read(layouts, indices), read(without_erasure(layouts), indices)
    assert actual.keys.shape == (4, 3, 2, 20, expected.keys.shape[-1]) and actual.hidden is None
    for name in ("keys", "values"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), atol=1e-5, rtol=1e-5)
        assert (getattr(causal, name) - getattr(expected, name)).abs().max() > 1e-2


def example(folder: Path, *numbers: int) -> dict[str, Any]:
    """Run Python blocks of docs/bridges.md as one script file (nnsight reads its source) and return its globals."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    script = folder / "example.py"
    script.write_text("\n".join(blocks[number] for number in numbers))
    return runpy.run_path(str(script))
