"""Reading traces: several formats, one result.

- JSON with `problem` and `segments`, each `{"type": "block" | "summary" | "answer", "text": …}` (the
  examples of microsoft/memento), delimiters not in the text;
- JSON, JSONL or Parquet with `problem` and `response`, delimiters in the text (OpenMementos, `default`);
- a data set of that kind on the hub, streamed (`microsoft/OpenMementos`);
- anything else: plain text, read as a response.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ghosttrace.data.user_json import parse_json
from ghosttrace.errors import HUB_ERRORS, UserError
from ghosttrace.model.prompts import chat_prompt
from ghosttrace.runs.folder import REFERENCE_ARM

PARQUET_BATCH_ROWS = 256  # rows of a Parquet file in memory at once
SEGMENT_KEYS = ("type", "text")
SEGMENT_DELIMITERS = {
    "block": ("<|block_start|>", "<|block_end|>"),
    "summary": ("<|summary_start|>", "<|summary_end|>"),
    "answer": ("</think>\n", ""),
}
THINK_TAG = "<think>"


@dataclass(frozen=True)
class TraceText:
    """A problem and the assistant's turn, delimiters spelled as Memento spells them."""

    problem: str
    response: str


def read_traces(source: str | Path, limit: int | None = None) -> list[TraceText]:
    """The traces of a file, or of a data set on the hub.

    Args:
        source: see `iter_records`.
        limit: the first traces only.

    Raises:
        UserError: there is no such file or data set, or it has neither `segments` nor `response`.
    """
    found = [parse_trace(record, source) for record in islice(iter_records(source), limit)]
    if not found:
        raise UserError(f"{source} holds no traces: give a JSON, JSONL, Parquet or text file with at least one")
    return found


def iter_records(source: str | Path) -> Iterator[Any]:
    """The rows of a file or of a data set on the hub (split `train`), one by one.

    Args:
        source: a path, or the hub id of a data set, such as `microsoft/OpenMementos`, or
            `microsoft/OpenMementos:full` for one of its configurations; or the folder of an ablation, whose
            right responses under `memento` are then rows of token ids.

    Raises:
        UserError: there is no such file or data set.
    """
    path = Path(source)
    if path.is_dir():
        for row in reference_responses(path):
            if row["correct"]:
                prompt, answer = row["prompt_ids"], row["response_ids"]
                name, labels = f"{row['problem']}/{row['repetition']}", [-100] * len(prompt) + answer
                yield {"id": name, "input_ids": prompt + answer, "labels": labels}
        return
    yield from _rows(path) if path.is_file() else _streamed(str(source))


def reference_responses(folder: Path) -> list[dict[str, Any]]:
    """The responses of the reference arm of a finished ablation: bench, problem, repetition, correct, token ids.

    Raises:
        UserError: the folder is not one of a finished run.
    """
    import pyarrow
    from pyarrow import parquet

    path = folder / "samples.parquet"
    if not path.is_file():
        raise UserError(f"{folder} holds no samples.parquet: give the folder of a finished run of ghosttrace ablate")
    columns = ["bench", "problem", "repetition", "correct", "prompt_ids", "response_ids"]
    try:
        table = parquet.read_table(path, columns=columns, filters=[("arm", "=", REFERENCE_ARM)])
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged or no ablation's: give the folder of a run of ghosttrace ablate") from error
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _streamed(source: str) -> Iterator[Mapping[str, Any]]:
    import datasets  # slow to import, and only needed here

    name, _, configuration = source.partition(":")
    if Path(name).suffix in (".json", ".jsonl", ".parquet", ".txt") or name.count("/") != 1:
        raise UserError(f"no file {source}: give a JSON, JSONL, Parquet or text file, or the hub id of a data set")
    try:
        yield from datasets.load_dataset(name, configuration or None, split="train", streaming=True)
    except (*HUB_ERRORS, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"no file {source}, and no data set of that name with a split 'train' can be read from the hub "
            "here: give a JSON, JSONL, Parquet or text file"
        ) from error


def _rows(path: Path) -> Iterator[Any]:
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        with path.open(encoding="utf-8", newline="\n") as file:  # not at U+2028, which JSON allows
            if path.suffix == ".jsonl":
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield parse_json(line, f"{path}, line {number}")
                return
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: give a JSON, JSONL, Parquet or text file") from error
    yield parse_json(text, str(path)) if path.suffix == ".json" else {"response": text}


def _parquet_rows(path: Path) -> Iterator[Any]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(PARQUET_BATCH_ROWS):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a Parquet file: give one, or JSON, JSONL or text") from error


def tokenize_trace(
    trace: TraceText, tokenizer: Any, family: str | None, names: Mapping[str, str]
) -> tuple[list[int], list[int]]:
    """Token ids of a trace's prompt and response.

    Each is tokenised on its own, as generation does: together, tokens could merge across the header.

    Args:
        trace: delimiters spelled as Memento spells them.
        tokenizer: with a chat template.
        family: transformers' model type, as far as it is known.
        names: how the tokenizer spells each delimiter.
    """
    response = trace.response
    for name, token in names.items():
        response = response.replace(f"<|{name}|>", token)
    invited = chat_prompt(tokenizer, family, trace.problem)
    texts = invited, _behind(invited, response)
    prompt, answer = (list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    return prompt, answer


def _behind(prompt: str, response: str) -> str:
    """A response without the `<think>` that its prompt ends with already: some chat templates invite with it."""
    for opening in (f"{THINK_TAG}\n", THINK_TAG):
        if prompt.endswith(opening):
            return response.removeprefix(opening) if response.startswith(opening) else response.removeprefix(THINK_TAG)
    return response


def parse_trace(record: Any, path: str | Path) -> TraceText:
    """A row as a trace.

    Raises:
        UserError: it has neither `segments` nor `response`, or they or `problem` are not of their kinds.
    """
    if not isinstance(record, Mapping) or not {"segments", "response"} & record.keys():
        raise UserError(f"{path} has neither 'segments' nor 'response': see the formats in ghosttrace/data/read.py")
    problem = record.get("problem", "")
    if not isinstance(problem, str):  # null would be asked as 'None'
        raise UserError(f"{path} has a 'problem' that is no text: give the user's message as a string")
    if "response" in record:
        if not isinstance(record["response"], str):
            raise UserError(f"{path} has a 'response' that is no text: give the assistant's turn as a string")
        return TraceText(problem, record["response"])
    segments = record["segments"]
    if not isinstance(segments, list) or not all(_is_segment(segment) for segment in segments):
        raise UserError(
            f"{path} has 'segments' that cannot be read: it is a list of {{'type': 'block', 'summary' or 'answer', "
            "'text': …}"
        )
    parts = [before + s["text"] + behind for s in segments for before, behind in [SEGMENT_DELIMITERS[s["type"]]]]
    return TraceText(problem, f"{THINK_TAG}\n" + "".join(parts))


def _is_segment(segment: Any) -> bool:
    if not isinstance(segment, Mapping) or set(SEGMENT_KEYS) - set(segment):
        return False
    kind, text = segment["type"], segment["text"]
    return isinstance(kind, str) and kind in SEGMENT_DELIMITERS and isinstance(text, str)
