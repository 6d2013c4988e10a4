"""Reading of traces from files and from data sets on the Hugging Face Hub.

Supported formats:

- JSON, JSONL or Parquet with `problem` and `segments`. Each segment is
  `{"type": "block" | "summary" | "answer", "text": …}` without delimiters in the text, as in the examples of
  microsoft/memento.
- JSON, JSONL or Parquet with `problem` and `response`, with delimiters in the text (OpenMementos, `default`).
- JSON, JSONL or Parquet with `messages`, and optionally `tools`, in OpenAI's format: a chat, with calls of tools and
  their results.
- A data set on the hub with rows of either kind, streamed (`microsoft/OpenMementos`).
- Any other file: plain text, read as one response.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ghosttrace.data.chats import ChatMessages, is_chat, parse_chat, tokenize_chat
from ghosttrace.data.user_json import parse_json
from ghosttrace.errors import HUB_ERRORS, UserError
from ghosttrace.model.prompts import chat_prompt
from ghosttrace.runs.folder import REFERENCE_ARM
from ghosttrace.runs.paths import check_path

PARQUET_BATCH_ROWS = 256  # rows of a Parquet file held in memory at once
SEGMENT_KEYS = ("type", "text")
SEGMENT_DELIMITERS = {
    "block": ("<|block_start|>", "<|block_end|>"),
    "summary": ("<|summary_start|>", "<|summary_end|>"),
    "answer": ("</think>\n", ""),
}
THINK_TAG = "<think>"


@dataclass(frozen=True)
class TraceText:
    """A trace as text.

    Attributes:
        problem: the user's message.
        response: the assistant's turn, with delimiters in Memento's spelling (`<|block_start|>` and so on).
    """

    problem: str
    response: str


def read_traces(source: str | Path, limit: int | None = None) -> list[TraceText | ChatMessages]:
    """Read the traces of a file or of a data set on the hub.

    Args:
        source: see `iter_records`.
        limit: maximum number of traces.

    Raises:
        UserError: the source does not exist, holds no traces, or has a row that is neither a trace nor a chat.
    """
    traces = [
        parse_chat(record, source) if is_chat(record) else parse_trace(record, source)
        for record in islice(iter_records(source), limit)
    ]
    if not traces:
        raise UserError(f"{source} holds no traces: give a JSON, JSONL, Parquet or text file with at least one")
    return traces


def iter_records(source: str | Path) -> Iterator[Any]:
    """Yield the rows of a file, of a data set on the hub (split `train`), or of the run folder of an ablation.

    Args:
        source: a file; the hub id of a data set, such as `microsoft/OpenMementos`, or
            `microsoft/OpenMementos:full` for one of its configurations; or the run folder of an ablation. The rows of
            a run folder are the correct responses of the reference arm, as token ids with labels for training.

    Raises:
        UserError: the source does not exist or cannot be read.
    """
    path = Path(source)
    check_path(path)
    if path.is_dir():
        for row in reference_responses(path):
            if row["correct"]:
                prompt, answer = row["prompt_ids"], row["response_ids"]
                name, labels = f"{row['problem']}/{row['repetition']}", [-100] * len(prompt) + answer
                yield {"id": name, "input_ids": prompt + answer, "labels": labels}
        return
    yield from _rows(path) if path.is_file() else _streamed(str(source))


def reference_responses(folder: Path) -> list[dict[str, Any]]:
    """Read the responses of the reference arm of a finished ablation.

    Returns:
        One dictionary per response with the keys `bench`, `problem`, `repetition`, `correct`, `prompt_ids` and
        `response_ids`.

    Raises:
        UserError: the folder is not the run folder of a finished ablation.
    """
    import pyarrow
    from pyarrow import parquet

    path = folder / "samples.parquet"
    if not path.is_file():
        raise UserError(f"{folder} has no samples.parquet: give the folder of a finished run of ghosttrace ablate")
    columns = ["bench", "problem", "repetition", "correct", "prompt_ids", "response_ids"]
    try:
        table = parquet.read_table(path, columns=columns, filters=[("arm", "=", REFERENCE_ARM)])
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is damaged or not of an ablation: give the folder of a run of ghosttrace ablate"
        ) from error
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _streamed(source: str) -> Iterator[Mapping[str, Any]]:
    import datasets  # imported here because the import is slow

    name, _, configuration = source.partition(":")
    if Path(name).suffix in (".json", ".jsonl", ".parquet", ".txt") or name.count("/") != 1:
        raise UserError(
            f"there is no file {source}: give a JSON, JSONL, Parquet or text file, or the hub id of a data set"
        )
    try:
        yield from datasets.load_dataset(name, configuration or None, split="train", streaming=True)
    except (*HUB_ERRORS, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"there is no file {source}, and no data set of that name with a split 'train' can be read from the hub: "
            "give a JSON, JSONL, Parquet or text file"
        ) from error


def _rows(path: Path) -> Iterator[Any]:
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        with path.open(encoding="utf-8", newline="\n") as file:  # U+2028 is not a line end: JSON allows it in strings
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
        raise UserError(f"{path} is not a Parquet file: give a Parquet, JSON, JSONL or text file") from error


def tokenize_trace(
    trace: TraceText | ChatMessages, tokenizer: Any, family: str | None, names: Mapping[str, str]
) -> tuple[list[int], list[int]]:
    """Tokenise the prompt and the response of a trace, or a chat (see `ghosttrace.data.chats.tokenize_chat`).

    Prompt and response are tokenised separately, as in generation. Otherwise tokens could merge across the assistant
    header.

    Args:
        trace: text with delimiters in Memento's spelling, or a chat.
        tokenizer: Hugging Face tokenizer with a chat template.
        family: the model type in transformers, if known.
        names: the tokenizer's spelling of each delimiter.

    Returns:
        Token ids of the prompt and token ids of the response.

    Raises:
        UserError: the chat template refuses the chat.
    """
    if isinstance(trace, ChatMessages):
        return tokenize_chat(trace, tokenizer)
    response = trace.response
    for name, token in names.items():
        response = response.replace(f"<|{name}|>", token)
    prompt = chat_prompt(tokenizer, family, trace.problem)
    texts = prompt, _remove_repeated_think(prompt, response)
    prompt_ids, response_ids = (list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    return prompt_ids, response_ids


def _remove_repeated_think(prompt: str, response: str) -> str:
    """Remove the leading `<think>` of a response if the chat template already ends the prompt with it."""
    for opening in (f"{THINK_TAG}\n", THINK_TAG):
        if prompt.endswith(opening):
            return response.removeprefix(opening) if response.startswith(opening) else response.removeprefix(THINK_TAG)
    return response


def parse_trace(record: Any, path: str | Path) -> TraceText:
    """Convert a row of a source to a trace.

    Args:
        record: a mapping with `response` or `segments`, and optionally `problem`.
        path: the source, for error messages.

    Raises:
        UserError: the row has neither `segments` nor `response`, or a value has the wrong type.
    """
    if not isinstance(record, Mapping) or not {"segments", "response"} & record.keys():
        raise UserError(f"{path} has neither 'segments' nor 'response': see the formats in ghosttrace/data/read.py")
    problem = record.get("problem", "")
    if not isinstance(problem, str):  # null would become the text 'None'
        raise UserError(f"{path} has a 'problem' that is not text: give the user's message as a string")
    if "response" in record:
        if not isinstance(record["response"], str):
            raise UserError(f"{path} has a 'response' that is not text: give the assistant's turn as a string")
        return TraceText(problem, record["response"])
    segments = record["segments"]
    if not isinstance(segments, list) or not all(_is_segment(segment) for segment in segments):
        raise UserError(
            f"{path} has invalid 'segments': give a list of {{'type': 'block', 'summary' or 'answer', 'text': …}}"
        )
    parts = []
    for segment in segments:
        opening, closing = SEGMENT_DELIMITERS[segment["type"]]
        parts.append(opening + segment["text"] + closing)
    return TraceText(problem, f"{THINK_TAG}\n" + "".join(parts))


def _is_segment(segment: Any) -> bool:
    if not isinstance(segment, Mapping) or set(SEGMENT_KEYS) - set(segment):
        return False
    kind, text = segment["type"], segment["text"]
    return isinstance(kind, str) and kind in SEGMENT_DELIMITERS and isinstance(text, str)
