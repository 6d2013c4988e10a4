"""Seed traces and builds against a scripted endpoint."""

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

from ghosttrace.pipeline.endpoint import Endpoint
from ghosttrace.pipeline.run import BuildResult, build
from ghosttrace.pipeline.segmentation import BlockLimits
from ghosttrace.pipeline.selection import Filters
from ghosttrace.pipeline.stages import Settings
from helpers.paths import DATA
from helpers.scripted_endpoint import KEY, ScriptedEndpoint

REAL_TRACE = DATA / "traces/memento_repo_example_trace.jsonl"
SMALL = Settings(filters=Filters(min_tokens=50), windows=(8, 5), limits=BlockLimits(min_tokens=60))
TWO_BLOCKS = replace(SMALL, limits=BlockLimits(min_tokens=60, min_blocks=2))
"""Settings under which a trace of less than 120 tokens has no segmentation."""
FILES = ("rows.jsonl", "full/train.jsonl", "default/train.jsonl", "rejected/train.jsonl", "set_aside.jsonl")
STEPS = (
    "We look at the terms again",
    "This follows from the line above",
    "Let us check it once more",
    "It works out well",
)


def seed(name: str, sentences: int = 24) -> dict[str, Any]:
    """Return a seed trace of about nine tokens a sentence."""
    thought = " ".join(f"{STEPS[n % 4]} for case {'abcdefghij'[n % 10]} of {name}." for n in range(sentences))
    return {"task_id": name, "problem": f"What is {name}?", "response": f"<think>{thought}</think>It is {name}."}


def seed_file(folder: Path, *records: Any) -> Path:
    """Write seed traces as JSONL; by default three good ones and one of each of two bad kinds."""
    chosen = records or (seed("one"), seed("two"), {"problem": "x"}, {"problem": "x", "response": "y"}, seed("three"))
    path = folder / "seeds.jsonl"
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in chosen), encoding="utf-8")
    return path


def endpoint_of(server: ScriptedEndpoint, **settings: Any) -> Endpoint:
    """Return the endpoint of a server."""
    return Endpoint(**{"base_url": server.url, "model": "scripted", "api_key": KEY, "concurrency": 4} | settings)


def build_at(
    server: ScriptedEndpoint, source: Path, out: Path, settings: Settings = SMALL, **endpoint: Any
) -> BuildResult:
    """Build a data set with a server."""
    return build(source, out, endpoint_of(server, **endpoint), settings)


def written(folder: Path) -> list[str]:
    """Return the content of the files of a build."""
    return [(folder / name).read_text() for name in FILES]


def stored_keys(folder: Path) -> set[str]:
    """Return the keys of the answers that a build has stored."""
    database = sqlite3.connect(folder / "calls.sqlite")
    try:
        return {key for (key,) in database.execute("SELECT key FROM calls")}
    except sqlite3.OperationalError:  # killed before the table was made
        return set()
    finally:
        database.close()
