"""From rows to examples on disk: tokenised, laid out, truncated, packed; what was left out is counted and named."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow
from datasets import Dataset
from pyarrow import parquet
from trl.data_utils import pack_dataset

from ghosttrace.data.read import iter_records, parse_trace, tokenize_trace
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import NEVER, Policy, alive
from ghosttrace.law.markup import DELIMITERS, Markup
from ghosttrace.runs.atomic import commit_file
from ghosttrace.training.examples import (
    IGNORE_INDEX,
    Example,
    Stage,
    check_expiry,
    delimiter_error,
    delimiter_outside_turn,
    make_example,
    truncated_length,
)

BadRows = Literal["skip", "refuse"]
MAX_LISTED_ROWS = 20  # rows that the report names
ROWS_PER_WRITE = 64  # written at once
EXAMPLE_COLUMNS = ("input_ids", "labels", "position_ids", "expiry", "kind")


class RowError(Exception):
    """Why a row cannot be trained on: what to count it under, a colon, and the rest."""


@dataclass(frozen=True)
class ExampleBuilder:
    """How rows become examples.

    Attributes:
        tokenizer: with the delimiters and a chat template.
        family: transformers' model type, for its chat format.
        markup: the ids of the delimiters and of the assistant's header.
        policy: the law of the checkpoint.
        stage: of `ghosttrace.training.examples.STAGES`.
        max_length: columns that an example may have.
        sealed_share: in the stage `memento`, the share of traces that are laid out over a sealed cache.
        bad_rows: what is done about rows that cannot be used.
        seed: which traces are sealed.
    """

    tokenizer: Any
    family: str
    markup: Markup
    policy: Policy
    stage: Stage
    max_length: int
    sealed_share: float = 0.0
    bad_rows: BadRows = "skip"
    seed: int = 42

    def stage_of_row(self, number: int) -> Stage:
        """The layout of a row: its own draw, whatever the rows before it were."""
        if self.stage != "memento" or not self.sealed_share:
            return self.stage
        return "sealed" if is_sealed(number, self.sealed_share, self.seed) else "memento"

    @cached_property
    def vocabulary_size(self) -> int:
        """Ids are below it; counted by the largest, as some tokenizers leave gaps."""
        return 1 + max(self.tokenizer.get_vocab().values())

    def tokenize(self, record: Any) -> tuple[list[int], list[int]]:
        """Token ids and labels, of text or of a row that has them already.

        Raises:
            RowError: the row has neither, or not of their kinds.
        """
        if not isinstance(record, Mapping):
            raise RowError("no columns: a row is an object with 'problem' and 'response', for one")
        if "input_ids" in record:
            return _pretokenized(record, self.vocabulary_size)
        try:
            text = parse_trace(record, "it")
        except UserError as error:
            raise RowError(f"no trace: {error}") from error
        spelled = self.tokenizer.convert_ids_to_tokens(list(self.markup.delimiters))
        prompt, response = tokenize_trace(
            text, self.tokenizer, self.family, dict(zip(DELIMITERS, spelled, strict=True))
        )
        end = self.tokenizer.eos_token_id if self.markup.turn_end is None else self.markup.turn_end
        if end is not None and response[-1:] != [end]:
            response.append(end)
        return prompt + response, [IGNORE_INDEX] * len(prompt) + response

    def build(self, record: Any, number: int, name: str) -> tuple[Example | None, str]:
        """A row laid out, or None and why not; the reason is `truncated` for one that was cut.

        Raises:
            UserError: its expiry column is of another law.
        """
        try:
            tokens, labels = self.tokenize(record)
            self._check(record, tokens, labels, name)
        except RowError as error:
            return None, str(error)
        stage = self.stage_of_row(number)
        kept = truncated_length(tokens, self.markup, self.policy, stage, self.max_length)
        if all(label == IGNORE_INDEX for label in labels[1:kept]):  # the first token has none before it to tell it
            return None, f"no token to learn within {self.max_length} columns"
        made = make_example(tokens[:kept], labels[:kept], self.markup, self.policy, stage)
        return made, "truncated" if kept < len(tokens) else ""

    def _check(self, record: Mapping[str, Any], tokens: list[int], labels: list[int], name: str) -> None:
        """Hold a row to the law, whole as it is: a stage or a cut changes nothing about what it should be."""
        wrong = delimiter_error(tokens, self.markup, self.policy)
        if wrong:
            raise RowError(f"unbalanced delimiters: {wrong}")
        place = delimiter_outside_turn(tokens, labels, self.markup, self.policy)
        if place:
            raise RowError(f"delimiters outside the assistant's turn: {place} has loss and no header before it")
        if "expiry" in record:
            if not _whole_numbers(record["expiry"]) or not all(abs(time) <= NEVER for time in record["expiry"]):
                raise RowError("broken expiry: it is a list of whole numbers of 64 bits, one a token, or left out")
            check_expiry(record["expiry"], tokens, self.markup, self.policy, name)


def is_sealed(number: int, share: float, seed: int = 42) -> bool:
    """Whether a row of a memento stage is laid out over a sealed cache.

    Args:
        number: of the row, counted over all sources.
        share: of the rows.
        seed: the trainer's.
    """
    return bool(np.random.default_rng([seed, number]).random() < share)


def _pretokenized(record: Mapping[str, Any], vocabulary: int) -> tuple[list[int], list[int]]:
    tokens, labels = record["input_ids"], record.get("labels", record["input_ids"])
    if not _whole_numbers(tokens) or not _whole_numbers(labels) or len(tokens) != len(labels):
        raise RowError("broken ids: input_ids and labels are lists of whole numbers, equally long")
    outside = next((token for token in tokens if not 0 <= token < vocabulary), None)
    if outside is not None:
        raise RowError(f"ids outside the vocabulary: they lie between 0 and {vocabulary - 1}, and one is {outside}")
    if any(label not in (IGNORE_INDEX, token) for token, label in zip(tokens, labels, strict=True)):
        raise RowError(
            "misplaced labels: a label is the token of its own place, or -100; shifting is done by the trainer"
        )
    return list(tokens), list(labels)


def _whole_numbers(value: Any) -> bool:
    """Whether it is a list of them; True and False are none."""
    return isinstance(value, list) and all(type(one) is int for one in value)


@dataclass
class PreparationReport:
    """What became of the rows.

    Attributes:
        rows, used, truncated: how many were read, are trained on, and were cut short.
        dropped: for each reason, how many.
        dropped_rows: the first of those dropped, by row, with the reason.
        columns, loss_tokens: of all examples: columns, and those that carry loss.
        compression: tokens over the peak of those held, the mean over the examples.
    """

    rows: int = 0
    used: int = 0
    truncated: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    dropped_rows: list[dict[str, str]] = field(default_factory=list)
    columns: int = 0
    loss_tokens: int = 0
    compression: float = 0.0

    def count_dropped(self, name: str, reason: str) -> None:
        """Count a row that is not used."""
        kind = reason.partition(":")[0]
        self.dropped[kind] = self.dropped.get(kind, 0) + 1
        if len(self.dropped_rows) < MAX_LISTED_ROWS:
            self.dropped_rows.append({"row": name, "reason": reason})

    def count_used(self, made: Example) -> None:
        """Count one that is."""
        self.used += 1
        self.columns += len(made.input_ids)
        self.loss_tokens += int((made.labels != IGNORE_INDEX).sum())
        tokens = len(np.unique(made.position_ids))  # over a sealed cache a memento's stand in two columns each
        ratio = tokens / max(1, int(alive(made.expiry).max()))
        self.compression += (ratio - self.compression) / self.used


def build_examples(
    example_builder: ExampleBuilder, sources: Sequence[str], limit: int | None, report: PreparationReport
) -> Iterator[Example]:
    """The examples of some sources, as they are read.

    Raises:
        UserError: a source cannot be read, or a row cannot be used and rows are not skipped.
    """
    for source in sources:
        for number, record in enumerate(islice(iter_records(source), limit)):
            name = f"{source}, row {record.get('id', number) if isinstance(record, Mapping) else number}"
            made, reason = example_builder.build(record, report.rows, name)
            report.rows += 1
            if made is None and example_builder.bad_rows == "refuse":
                raise UserError(f"{name}: {reason}: mend the row, or leave such rows out with --bad-rows skip")
            if made is None:
                report.count_dropped(name, reason)
                continue
            report.truncated += reason == "truncated"
            report.count_used(made)
            yield made


def write_examples(
    path: Path, example_builder: ExampleBuilder, sources: Sequence[str], limit: int | None = None
) -> PreparationReport:
    """Write the examples of some sources to a Parquet file, which appears whole or not at all.

    Raises:
        UserError: see `build_examples`; or no row is left.
    """
    report, schema = (
        PreparationReport(),
        pyarrow.schema([(name, pyarrow.list_(pyarrow.int32())) for name in EXAMPLE_COLUMNS]),
    )
    partial, made = path.with_suffix(".part"), build_examples(example_builder, sources, limit, report)
    with parquet.ParquetWriter(partial, schema) as writer:
        while batch := list(islice(made, ROWS_PER_WRITE)):
            columns = {name: [one.columns[name].astype(np.int32) for one in batch] for name in EXAMPLE_COLUMNS}
            writer.write_table(pyarrow.table(columns, schema=schema))
    if not report.used:
        partial.unlink()
        why = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items()) or "there are none"
        first = "".join(f"; {one['row']}: {one['reason']}" for one in report.dropped_rows[:1])
        raise UserError(f"no row of {', '.join(sources)} can be trained on ({why}{first}): give others")
    commit_file(partial, path)
    return report


def open_examples(path: Path, cache_dir: Path, packed_width: int | None) -> Dataset:
    """The examples as a data set on disk.

    Args:
        path: of `write_examples`.
        cache_dir: where its cache goes.
        packed_width: columns of a packed row, filled by best fit (`trl.pack_dataset`); None: one example a row.
    """
    found = Dataset.from_parquet(str(path), cache_dir=str(cache_dir))
    if packed_width is None:
        found = found.map(lambda row: {"seq_lengths": [len(row["input_ids"])]})
    else:
        found = pack_dataset(found, packed_width, "bfd")
    return found.with_format("numpy")
