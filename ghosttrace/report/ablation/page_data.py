"""Per-sample data of an ablation report: answers, compression, and as many whole traces as fit on the page.

Large runs have thousands of long responses. Texts and token ids are read only for the traces that the page shows, a
few rows at a time, so that memory use and page size do not grow with the run.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyarrow import compute, parquet

from ghosttrace.law.expiry import NEVER, MementoLaw, alive, expiry
from ghosttrace.law.law import Law
from ghosttrace.law.markup import DELIMITERS, Block, Markup, find_blocks
from ghosttrace.law.parse import recorded_law
from ghosttrace.report.ablation.boxes import Box, Piece, boxes_of_tokens
from ghosttrace.runs.folder import REFERENCE_ARM

TRACE_COLUMNS: tuple[str, ...] = ("correct", "extracted", "rule", "answer", "donor_answer", "finish")
TRACE_COLUMNS += ("response_tokens", "peak_kv_tokens")
SAMPLE_COLUMNS = ("bench", "arm", "problem", "repetition", *TRACE_COLUMNS)
TEXT_COLUMNS = ("prompt", "prompt_ids", "response_ids", "response", "prompt_text", "token_ends")
MAX_TRACE_BYTES = 8_000_000  # of the JSON of all traces on a page
READ_BATCH_ROWS = 32
BYTES_PER_TOKEN, BYTES_PER_TRACE = 3, 1200  # rough estimates; `MAX_TRACE_BYTES` applies to the actual size
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MAX_ANSWER_CHARS, MAX_ANSWERS_PER_ARM = 160, 12  # per cell of the answer table

Group = tuple[str, str, int]
"""Benchmark, problem and repetition: samples that are shown side by side, one per arm."""


def read_samples_without_texts(path: Path) -> pd.DataFrame:
    """Read all samples without texts and token ids; `prompt_tokens` holds the length of each prompt."""
    file = parquet.ParquetFile(path)
    present = [name for name in SAMPLE_COLUMNS if name in file.schema_arrow.names]
    samples: pd.DataFrame = file.read(columns=present).to_pandas()
    lengths = [compute.list_value_length(batch["prompt_ids"]) for batch in file.iter_batches(columns=["prompt_ids"])]
    samples["prompt_tokens"] = np.concatenate([part.to_numpy(zero_copy_only=False) for part in lengths])
    return samples.assign(rule=None) if "rule" not in samples else samples


def read_rows(path: Path, wanted: Iterable[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield row number and row, with texts and token ids, of some rows in the order of the file.

    Row groups without any wanted row are not read.
    """
    rows = np.array(sorted(wanted), dtype=np.int64)
    file, begin = parquet.ParquetFile(path, memory_map=True), 0
    columns = [name for name in SAMPLE_COLUMNS + TEXT_COLUMNS if name in file.schema_arrow.names]
    for group in range(file.num_row_groups):
        end = begin + file.metadata.row_group(group).num_rows
        if ((rows >= begin) & (rows < end)).any():
            for batch in file.iter_batches(READ_BATCH_ROWS, row_groups=[group], columns=columns):
                inside = rows[(rows >= begin) & (rows < begin + len(batch))]
                yield from zip(inside.tolist(), batch.take(inside - begin).to_pylist(), strict=True)
                begin += len(batch)
        begin = end


def quantiles(values: pd.Series) -> list[float]:
    """Return the quantiles of some values at `QUANTILES`."""
    return [round(float(value), 4) for value in np.quantile(values.to_numpy(float), QUANTILES)]


def answer_table(samples: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Collect the extracted answers by benchmark, problem and arm.

    Returns:
        For each benchmark a list of problems, each with `problem`, `answer` and, by arm, `accuracy`, `answers` and
        `more`. An answer is [text or None, correct, count, grading rules], the most frequent first; `more` is the
        number of samples whose answers are omitted.
    """
    table: dict[str, list[dict[str, Any]]] = {}
    for (bench, problem), rows in samples.groupby(["bench", "problem"], sort=False):
        arms = {}
        for arm, part in rows.groupby("arm", sort=False):
            counted: dict[tuple[str | None, bool], list[Any]] = {}
            for text, right, rule in zip(part["extracted"], part["correct"], part["rule"], strict=True):
                entry = counted.setdefault((_short(text), bool(right)), [0, set()])
                entry[0] += 1
                entry[1] |= set() if pd.isna(rule) else {rule}
            ranked = sorted(counted.items(), key=lambda item: -item[1][0])
            answers = [[*key, count, ", ".join(sorted(rules))] for key, (count, rules) in ranked[:MAX_ANSWERS_PER_ARM]]
            more = sum(count for _, (count, _) in ranked[MAX_ANSWERS_PER_ARM:])
            arms[arm] = {"accuracy": float(part["correct"].mean()), "answers": answers, "more": more}
        row = {"problem": problem, "answer": _short(rows["answer"].iloc[0]), "arms": arms}
        table.setdefault(str(bench), []).append(row)
    return table


def _short(answer: Any) -> str | None:
    if pd.isna(answer):
        return None
    text = str(answer)
    return text if len(text) <= MAX_ANSWER_CHARS else text[:MAX_ANSWER_CHARS] + "…"


def peak_ratios(samples: pd.DataFrame) -> dict[str, dict[str, list[float]]]:
    """Compute quantiles of the reduction of the KV peak by erasure, by benchmark and arm.

    The reduction is the peak without erasure divided by the peak of the sample. The peak without erasure is one less
    than the length of the trace, because the last token is never processed.
    """
    ratio = (samples["prompt_tokens"] + samples["response_tokens"] - 1) / samples["peak_kv_tokens"]
    ratios: dict[str, dict[str, list[float]]] = {}
    for (bench, arm), part in ratio.groupby([samples["bench"], samples["arm"]], sort=False):
        ratios.setdefault(str(bench), {})[str(arm)] = quantiles(part)
    return ratios


def first_groups(samples: pd.DataFrame) -> Iterator[tuple[Group, list[int]]]:
    """Yield groups and their row numbers in display order, until they exceed the page by their estimated size.

    Groups are sorted by repetition, then by the problem's index in its benchmark, then by benchmark.
    """
    number = samples.groupby("bench")["problem"].transform(lambda names: pd.factorize(names)[0])
    order = samples.assign(row=range(len(samples)), number=number, bench_index=pd.factorize(samples["bench"])[0])
    size = 0
    for _, rows in order.groupby(["repetition", "number", "bench_index"]):
        first = rows.iloc[0]
        yield (first["bench"], first["problem"], int(first["repetition"])), rows["row"].tolist()
        size += BYTES_PER_TRACE * len(rows) + BYTES_PER_TOKEN * int(rows["response_tokens"].sum())
        if size > 1.5 * MAX_TRACE_BYTES:
            return


def read_traces(path: Path, samples: pd.DataFrame, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Read the traces that the page shows, group by group, up to `MAX_TRACE_BYTES`; at least one group.

    Args:
        path: Path of samples.parquet.
        samples: Result of `read_samples_without_texts`.
        config: Content of run.json.

    Returns:
        For each group `bench`, `problem`, `repetition`, `prompt` (None in runs that did not record it) and `arms`: by
        arm, the result of `TraceRenderer.render` with `first_difference` from `memento`, a 0-based token index in the
        response or None if the responses are equal.
    """
    groups, renderer = dict(first_groups(samples)), TraceRenderer.from_config(config)
    group_of = {row: group for group, rows in groups.items() for row in rows}
    rendered: dict[Group, dict[str, Any]] = {}
    tokens: dict[tuple[Group, str], np.ndarray] = {}
    for number, row in read_rows(path, group_of):
        group, arm = group_of[number], row["arm"]
        names = {"bench": group[0], "problem": group[1], "repetition": group[2], "prompt": row.get("prompt")}
        rendered.setdefault(group, {**names, "arms": {}})["arms"][arm] = renderer.render(row)
        tokens[group, arm] = np.array(row["response_ids"], dtype=np.int32)
    shown: list[dict[str, Any]] = []
    size = 0
    for group in groups:
        for arm, trace in rendered[group]["arms"].items():
            trace["first_difference"] = first_difference(tokens[group, REFERENCE_ARM], tokens[group, arm])
        size += len(to_json(rendered[group]).encode())
        if shown and size > MAX_TRACE_BYTES:
            break
        shown.append(rendered[group])
    return shown


def first_difference(first: np.ndarray, second: np.ndarray) -> int | None:
    """Return the first index at which two sequences differ; None if they are equal.

    If one sequence is a prefix of the other, the index is the length of the shorter one.
    """
    common = min(len(first), len(second))
    differ = np.flatnonzero(first[:common] != second[:common])
    if len(differ):
        return int(differ[0])
    return None if len(first) == len(second) else common


def to_json(value: Any) -> str:
    """Serialise to JSON that is safe inside a <script> element, whatever text it contains."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def curve_breakpoints(curve: np.ndarray) -> list[list[int]]:
    """Return the points [step, value] between which a curve, int64[T], rises by one per step."""
    bends = np.flatnonzero(np.diff(curve) != 1)
    steps = np.unique(np.concatenate([[0, len(curve) - 1], bends, bends + 1]))
    return [[int(step), int(curve[step])] for step in steps]


@dataclass(frozen=True)
class TraceRenderer:
    """Converter of a run's samples to the data that the page shows.

    Attributes:
        markup: Markup of the checkpoint.
        laws: Law of each arm.
        delimiter_texts: Text of each delimiter, by token id.
    """

    markup: Markup
    laws: dict[str, Law]
    delimiter_texts: dict[int, str]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "TraceRenderer":
        """Build the renderer from run.json; delimiter texts default to those of the Memento paper."""
        markup = Markup.from_dict(config["markup"])
        names = {name: f"<|{name}|>" for name in DELIMITERS} | config.get("delimiters", {})
        delimiter_texts = {token: names[name] for name, token in zip(DELIMITERS, markup.delimiters, strict=True)}
        return cls(markup, {name: recorded_law(arm, markup) for name, arm in config["arms"].items()}, delimiter_texts)

    def render(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Convert one sample, with texts and token ids.

        Returns:
            The columns `TRACE_COLUMNS`; `boxes`, the labelled parts of the response; `curve`, the corners of the KV
            sawtooth as [step, tokens held]; `compression`, block tokens over memento tokens, None without blocks.
        """
        law, ids = self.laws[row["arm"]], np.array([*row["prompt_ids"], *row["response_ids"]], dtype=np.int64)
        times, blocks = expiry(ids, law), []
        if isinstance(law, MementoLaw):
            blocks = find_blocks(ids, self.markup, law.policy.require_assistant_section)
            boxes = self.boxes(row["response"], ids, len(row["prompt_ids"]), times, blocks)
        else:
            boxes = boxes_of_tokens(row, times)
        block_tokens = sum(block.end - block.start - 1 for block in blocks)
        memento_tokens = sum(block.memento_end - block.memento_start - 1 for block in blocks)
        return {name: row.get(name) for name in TRACE_COLUMNS} | {
            "boxes": boxes,
            "curve": curve_breakpoints(alive(times)),
            "compression": round(block_tokens / memento_tokens, 4) if memento_tokens else None,
        }

    def boxes(self, response: str, ids: np.ndarray, prompt: int, times: np.ndarray, blocks: list[Block]) -> list[Box]:
        """Split a response at its delimiters and mark its erased text.

        A run folder has no tokenizer, so the text is split at the texts of the delimiters. If these do not match the
        delimiters among the ids (a model can spell a delimiter in plain characters), the response is one box.

        Args:
            response: The text of `ids[prompt:]`.
            ids: int64[T], prompt and response.
            prompt: Length of the prompt in tokens.
            times: int64[T], expiry of each token.
            blocks: The finished blocks in `ids`.
        """
        parts = re.split("(" + "|".join(map(re.escape, self.delimiter_texts.values())) + ")", response)
        indices = (np.flatnonzero(np.isin(ids[prompt:], self.markup.delimiters)) + prompt).tolist()
        if parts[1::2] != [self.delimiter_texts[int(ids[index])] for index in indices]:
            return [Box("text", len(ids) - prompt, (Piece(response, False, False),))]
        label = {block.start: f"block {number}" for number, block in enumerate(blocks, 1)}
        label |= {block.memento_start: f"memento {number}" for number, block in enumerate(blocks, 1)}
        opening = {self.markup.block_start: "unfinished block", self.markup.summary_start: "unfinished memento"}
        erased = [*(times < NEVER).tolist(), False]
        boxes = [("text", 0, [Piece(parts[0], erased[prompt], False)])]
        following = [*indices, len(ids)][1:]
        for index, following_index, mark, text in zip(indices, following, parts[1::2], parts[2::2], strict=True):
            delimiter, inside = Piece(mark, erased[index], True), Piece(text, erased[index + 1], False)
            if int(ids[index]) in opening:
                name = label.get(index, opening[int(ids[index])])
                boxes.append((name, following_index - index - 1, [delimiter, inside]))
            else:
                boxes[-1][2].append(delimiter)
                boxes.append(("text", 0, [inside]))
        nonempty = [
            Box(name, tokens, tuple(p for p in pieces if p.text)) for name, tokens, pieces in _split_off_answer(boxes)
        ]
        return [box for box in nonempty if box.pieces]


def _split_off_answer(boxes: list[tuple[str, int, list[Piece]]]) -> list[tuple[str, int, list[Piece]]]:
    """Split the text after the last `</think>` from the last box into an `answer` box."""
    name, _, pieces = boxes[-1]
    before, mark, after = pieces[-1].text.rpartition("</think>")
    if name != "text" or not mark:
        return boxes
    thought = pieces[-1]._replace(text=before + mark)
    return [*boxes[:-1], (name, 0, [*pieces[:-1], thought]), ("answer", 0, [Piece(after, False, False)])]
