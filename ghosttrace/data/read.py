"""Reading traces: three file formats, one result.

- JSON with `problem` and `segments`, each `{"type": "block" | "summary" | "answer", "text": …}` (the
  examples of microsoft/memento), delimiters not in the text;
- JSON or JSONL with `problem` and `response`, delimiters in the text (OpenMementos, `default`);
- anything else: plain text, read as a response.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghosttrace.errors import UserError

KINDS = ("type", "text")
PLACES = {
    "block": ("<|block_start|>", "<|block_end|>"),
    "summary": ("<|summary_start|>", "<|summary_end|>"),
    "answer": ("</think>\n", ""),
}


@dataclass(frozen=True)
class TraceText:
    """A problem and the assistant's turn, delimiters spelled as Memento spells them."""

    problem: str
    response: str


def read_traces(path: Path) -> list[TraceText]:
    """The traces of a file.

    Raises:
        UserError: the file is missing or has neither `segments` nor `response`.
    """
    if not path.is_file():
        raise UserError(f"no file {path}: give --trace a JSON, JSONL or text file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: give a JSON, JSONL or text file") from error
    if path.suffix not in (".json", ".jsonl"):
        return [TraceText("", text)]
    try:
        records = (
            [json.loads(text)] if path.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line]
        )
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not valid JSON ({error}): give one object, or one a line in a .jsonl file"
        ) from error
    return [_trace(record, path) for record in records]


def _trace(record: Any, path: Path) -> TraceText:
    if not isinstance(record, dict) or not {"segments", "response"} & record.keys():
        raise UserError(f"{path} has neither 'segments' nor 'response': see the formats in ghosttrace/data/read.py")
    problem = str(record.get("problem", ""))
    if "response" in record:
        return TraceText(problem, str(record["response"]))
    segments = record["segments"]
    if not isinstance(segments, list) or any(set(KINDS) - set(s) or s["type"] not in PLACES for s in segments):
        raise UserError(f"{path}: 'segments' is a list of {{'type': 'block', 'summary' or 'answer', 'text': …}}")
    parts = [before + str(s["text"]) + behind for s in segments for before, behind in [PLACES[s["type"]]]]
    return TraceText(problem, "<think>\n" + "".join(parts))
