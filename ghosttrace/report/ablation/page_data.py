"""What a report shows of single samples: answers, compression, and as many whole traces as fit.

A run of the paper's size has 13,440 responses of 12,000 tokens. Their light columns are small; texts
and ids are read for the traces that are shown alone, a few rows at a time, so that neither the
memory taken nor the page grows with the run.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pyarrow import compute, parquet

from ghosttrace.law.expiry import NEVER, Policy, alive, expiry
from ghosttrace.law.markup import DELIMITERS, Block, Markup, find_blocks
from ghosttrace.runs.folder import REFERENCE_ARM

SAMPLE_COLUMNS = (
    *("bench", "arm", "problem", "repetition", "correct", "extracted", "rule", "answer", "donor_answer"),
    *("finish", "response_tokens", "peak_kv_tokens"),
)
TEXT_COLUMNS = ("prompt", "prompt_ids", "response_ids", "response")
MAX_TRACE_BYTES = 8_000_000  # of traces in a page
TRACE_COLUMNS = (
    "correct",
    "extracted",
    "rule",
    "answer",
    "donor_answer",
    "finish",
    "response_tokens",
    "peak_kv_tokens",
)
READ_BATCH_ROWS = 32
BYTES_PER_TOKEN, BYTES_PER_TRACE = (
    3,
    1200,
)  # a first guess at what a trace takes; the page is held to what it really takes
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MAX_ANSWER_CHARS, MAX_ANSWERS_PER_ARM = 160, 12  # of one cell in the table of answers

Group = tuple[str, str, int]
"""Benchmark, problem, repetition: the samples that are read side by side, one an arm."""


class Piece(NamedTuple):
    """Text that is erased, or kept, as a whole."""

    text: str
    erased: bool
    delimiter: bool


class Box(NamedTuple):
    """A labelled part of a response.

    Attributes:
        label: `block 1`, `memento 1`, `text`, `answer`, `unfinished block`, `unfinished memento`.
        tokens: between its delimiters.
        pieces: its text, delimiters included.
    """

    label: str
    tokens: int
    pieces: tuple[Piece, ...]


def read_samples_without_texts(path: Path) -> pd.DataFrame:
    """Every sample without its texts, and the length of its prompt as `prompt_tokens`."""
    file = parquet.ParquetFile(path)
    present = [name for name in SAMPLE_COLUMNS if name in file.schema_arrow.names]
    samples: pd.DataFrame = file.read(columns=present).to_pandas()
    lengths = [compute.list_value_length(batch["prompt_ids"]) for batch in file.iter_batches(columns=["prompt_ids"])]
    samples["prompt_tokens"] = np.concatenate([part.to_numpy(zero_copy_only=False) for part in lengths])
    return samples.assign(rule=None) if "rule" not in samples else samples


def read_rows(path: Path, wanted: Iterable[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Some rows, texts and ids included, in the file's order; row groups without any of them are not read."""
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
    """The values at `QUANTILES`."""
    return [round(float(value), 4) for value in np.quantile(values.to_numpy(float), QUANTILES)]


def answer_table(samples: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """For each benchmark its problems, and for each arm accuracy and answers, the commonest first.

    An answer is [text or None, count, right, how it was found]; `more` counts those left out.
    """
    table: dict[str, list[dict[str, Any]]] = {}
    for (bench, problem), rows in samples.groupby(["bench", "problem"], sort=False):
        cells = {}
        for arm, part in rows.groupby("arm", sort=False):
            counted: dict[tuple[str | None, bool], list[Any]] = {}
            for text, right, rule in zip(part["extracted"], part["correct"], part["rule"], strict=True):
                found = counted.setdefault((_short(text), bool(right)), [0, set()])
                found[0] += 1
                found[1] |= set() if pd.isna(rule) else {rule}
            ranked = sorted(counted.items(), key=lambda item: -item[1][0])
            answers = [[*key, count, ", ".join(sorted(rules))] for key, (count, rules) in ranked[:MAX_ANSWERS_PER_ARM]]
            more = sum(count for _, (count, _) in ranked[MAX_ANSWERS_PER_ARM:])
            cells[arm] = {"accuracy": float(part["correct"].mean()), "answers": answers, "more": more}
        entry = {"problem": problem, "answer": _short(rows["answer"].iloc[0]), "arms": cells}
        table.setdefault(str(bench), []).append(entry)
    return table


def _short(answer: Any) -> str | None:
    if pd.isna(answer):
        return None
    text = str(answer)
    return text if len(text) <= MAX_ANSWER_CHARS else text[:MAX_ANSWER_CHARS] + "…"


def peak_ratios(samples: pd.DataFrame) -> dict[str, dict[str, list[float]]]:
    """For each benchmark and arm: quantiles, over all samples, of the peak without erasing over the peak with.

    Both are of tokens held while a token is processed, which the last one never is.
    """
    ratio = (samples["prompt_tokens"] + samples["response_tokens"] - 1) / samples["peak_kv_tokens"]
    found: dict[str, dict[str, list[float]]] = {}
    for (bench, arm), part in ratio.groupby([samples["bench"], samples["arm"]], sort=False):
        found.setdefault(str(bench), {})[str(arm)] = quantiles(part)
    return found


def first_groups(samples: pd.DataFrame) -> Iterator[tuple[Group, list[int]]]:
    """Groups and their rows in the order in which they are shown, until they have surely filled the page.

    First repetitions come first; within one, the first problem of every benchmark, then the second.
    """
    number = samples.groupby("bench")["problem"].transform(lambda names: pd.factorize(names)[0])
    order = samples.assign(row=range(len(samples)), number=number, place=pd.factorize(samples["bench"])[0])
    size = 0
    for _, rows in order.groupby(["repetition", "number", "place"]):
        one = rows.iloc[0]
        yield (one["bench"], one["problem"], int(one["repetition"])), rows["row"].tolist()
        size += BYTES_PER_TRACE * len(rows) + BYTES_PER_TOKEN * int(rows["response_tokens"].sum())
        if size > 1.5 * MAX_TRACE_BYTES:
            return


def read_traces(path: Path, samples: pd.DataFrame, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The traces to show, group by group, until `MAX_TRACE_BYTES` are full; the first group is always there.

    Args:
        path: samples.parquet.
        samples: what `read_samples_without_texts` made of it.
        config: run.json.

    Returns:
        For each group its bench, problem, repetition, prompt (None in runs that did not record it) and,
        by arm, what `TraceRenderer.render` makes of its sample, with `parts`: the first token, counted from 0,
        that is not `memento`'s, None if all are.
    """
    groups, reader = dict(first_groups(samples)), TraceRenderer.from_config(config)
    group_of = {row: group for group, rows in groups.items() for row in rows}
    found: dict[Group, dict[str, Any]] = {}
    tokens: dict[tuple[Group, str], np.ndarray] = {}
    for number, row in read_rows(path, group_of):
        group, arm = group_of[number], row["arm"]
        names = {"bench": group[0], "problem": group[1], "repetition": group[2], "prompt": row.get("prompt")}
        found.setdefault(group, {**names, "arms": {}})["arms"][arm] = reader.render(row)
        tokens[group, arm] = np.array(row["response_ids"], dtype=np.int32)
    shown: list[dict[str, Any]] = []
    size = 0
    for group in groups:
        for arm, trace in found[group]["arms"].items():
            trace["parts"] = first_difference(tokens[group, REFERENCE_ARM], tokens[group, arm])
        size += len(to_json(found[group]).encode())
        if shown and size > MAX_TRACE_BYTES:
            break
        shown.append(found[group])
    return shown


def first_difference(one: np.ndarray, other: np.ndarray) -> int | None:
    """The first place at which two sequences differ, one of them ending included; None if they do not."""
    both = min(len(one), len(other))
    differ = np.flatnonzero(one[:both] != other[:both])
    if len(differ):
        return int(differ[0])
    return None if len(one) == len(other) else both


def to_json(value: Any) -> str:
    """JSON that stays data inside a <script> element, whatever a model wrote."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def curve_breakpoints(curve: np.ndarray) -> list[list[int]]:
    """The points between which a curve, int64[T], rises by one a step: [step, value]."""
    bends = np.flatnonzero(np.diff(curve) != 1)
    places = np.unique(np.concatenate([[0, len(curve) - 1], bends, bends + 1]))
    return [[int(place), int(curve[place])] for place in places]


@dataclass(frozen=True)
class TraceRenderer:
    """How to read the traces of a run.

    Attributes:
        markup: the checkpoint's.
        policies: the policy of each arm.
        delimiter_texts: the delimiters as text, by their ids.
    """

    markup: Markup
    policies: dict[str, Policy]
    delimiter_texts: dict[int, str]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "TraceRenderer":
        """As run.json says; the delimiters are spelled as Memento spells them unless it says otherwise."""
        markup = Markup.from_dict(config["markup"])
        names = {name: f"<|{name}|>" for name in DELIMITERS} | config.get("delimiters", {})
        delimiter_texts = {token: names[name] for name, token in zip(DELIMITERS, markup.delimiters, strict=True)}
        policies = {name: Policy(**arm["policy"]) for name, arm in config["arms"].items()}
        return cls(markup, policies, delimiter_texts)

    def render(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """One response for the page.

        `curve` holds the corners of the KV sawtooth as [step, tokens held], `compression` is tokens of
        finished blocks over tokens of their mementos, None where there are none.
        """
        law = self.policies[row["arm"]]
        ids = np.array([*row["prompt_ids"], *row["response_ids"]], dtype=np.int64)
        times, blocks = expiry(ids, self.markup, law), find_blocks(ids, self.markup, law.require_assistant_section)
        written = sum(block.end - block.start - 1 for block in blocks)
        kept = sum(block.memento_end - block.memento_start - 1 for block in blocks)
        return {name: row.get(name) for name in TRACE_COLUMNS} | {
            "boxes": self.boxes(row["response"], ids, len(row["prompt_ids"]), times, blocks),
            "curve": curve_breakpoints(alive(times)),
            "compression": round(written / kept, 4) if kept else None,
        }

    def boxes(self, response: str, ids: np.ndarray, prompt: int, times: np.ndarray, blocks: list[Block]) -> list[Box]:
        """Cut a response at its delimiters and say what of it is erased.

        There is no tokenizer here, so the text is cut where the delimiters are spelled. Where it spells
        other delimiters than the ids hold (a model can write one in plain letters), it stays one box.

        Args:
            response: the text of `ids[prompt:]`.
            ids: int64[T], prompt and response.
            prompt: length of the prompt.
            times: int64[T], their expiry.
            blocks: the finished pairs among them.
        """
        parts = re.split("(" + "|".join(map(re.escape, self.delimiter_texts.values())) + ")", response)
        places = (np.flatnonzero(np.isin(ids[prompt:], self.markup.delimiters)) + prompt).tolist()
        if parts[1::2] != [self.delimiter_texts[int(ids[place])] for place in places]:
            return [Box("text", len(ids) - prompt, (Piece(response, False, False),))]
        label = {block.start: f"block {number}" for number, block in enumerate(blocks, 1)}
        label |= {block.memento_start: f"memento {number}" for number, block in enumerate(blocks, 1)}
        opening = {self.markup.block_start: "unfinished block", self.markup.summary_start: "unfinished memento"}
        gone = [*(times < NEVER).tolist(), False]
        found = [("text", 0, [Piece(parts[0], gone[prompt], False)])]
        for place, then, mark, text in zip(places, [*places, len(ids)][1:], parts[1::2], parts[2::2], strict=True):
            here, inside = Piece(mark, gone[place], True), Piece(text, gone[place + 1], False)
            if int(ids[place]) in opening:
                found.append((label.get(place, opening[int(ids[place])]), then - place - 1, [here, inside]))
            else:
                found[-1][2].append(here)
                found.append(("text", 0, [inside]))
        drawn = [
            Box(name, tokens, tuple(p for p in pieces if p.text)) for name, tokens, pieces in _split_off_answer(found)
        ]
        return [box for box in drawn if box.pieces]


def _split_off_answer(found: list[tuple[str, int, list[Piece]]]) -> list[tuple[str, int, list[Piece]]]:
    """Cut what follows the last `</think>` off the last box, which ends with a piece of plain text."""
    name, _, pieces = found[-1]
    before, mark, after = pieces[-1].text.rpartition("</think>")
    if name != "text" or not mark:
        return found
    thought = pieces[-1]._replace(text=before + mark)
    return [*found[:-1], (name, 0, [*pieces[:-1], thought]), ("answer", 0, [Piece(after, False, False)])]
