"""Preparation of training examples: tokenisation, layout, truncation and packing of rows, and a report on them.

The report counts the rows that were dropped, by reason.
"""

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
from ghosttrace.law.expiry import NEVER, MementoLaw, alive
from ghosttrace.law.law import Law
from ghosttrace.law.markup import DELIMITERS, Markup
from ghosttrace.runs.atomic import commit_file
from ghosttrace.training.examples import (
    IGNORE_INDEX,
    Example,
    SealedArm,
    Stage,
    check_expiry,
    delimiter_error,
    delimiter_outside_turn,
    make_example,
    stage_law,
    truncated_length,
)
from ghosttrace.training.rows import RowError, is_int_list, read_token_ids

BadRows = Literal["skip", "refuse"]
MAX_LISTED_ROWS = 20  # dropped rows that the report lists by name
ROWS_PER_WRITE = 64
EXAMPLE_COLUMNS = ("input_ids", "labels", "position_ids", "expiry", "kind", "token_index")


@dataclass(frozen=True)
class ExampleBuilder:
    """Conversion of rows to training examples.

    Attributes:
        tokenizer: tokenizer with the delimiters and a chat template.
        family: model type in transformers, which selects the chat format.
        markup: token ids of the delimiters and of the assistant's header.
        law: which tokens leave the cache and when; must match the checkpoint.
        stage: one of `ghosttrace.training.examples.STAGES`.
        max_length: maximum number of columns of an example.
        sealed_share: share of the rows, from 0 to 1, that are laid out with a sealed cache in the stage `memento`.
        bad_rows: whether rows that cannot be used are skipped, or stop the run with an error.
        seed: random seed for the choice of the sealed rows.
        sealed_arms: arms whose caches the sealed rows have, in turn.
    """

    tokenizer: Any
    family: str
    markup: Markup
    law: Law
    stage: Stage
    max_length: int
    sealed_share: float = 0.0
    bad_rows: BadRows = "skip"
    seed: int = 42
    sealed_arms: tuple[SealedArm, ...] = ("restart",)

    def stage_of_row(self, number: int) -> Stage:
        """Return the stage for which a row is laid out; it depends only on the seed and the row's number."""
        if self.stage != "memento" or not self.sealed_share:
            return self.stage
        return "sealed" if is_sealed(number, self.sealed_share, self.seed) else "memento"

    @cached_property
    def vocabulary_size(self) -> int:
        """Return the largest token id plus 1, because some tokenizers have gaps between their ids."""
        return 1 + max(self.tokenizer.get_vocab().values())

    def tokenize(self, record: Any) -> tuple[list[int], list[int]]:
        """Return the token ids and labels of a row, which holds either text or token ids.

        Args:
            record: mapping with `input_ids` and optionally `labels`, or with the text fields of `parse_trace`.

        Returns:
            Two lists of equal length. Labels are -100 for the prompt of a text.

        Raises:
            RowError: if the row has no such fields, or fields of other types.
        """
        if not isinstance(record, Mapping):
            raise RowError("no columns: a row must be an object, for example with 'problem' and 'response'")
        if "input_ids" in record:
            return read_token_ids(record, self.vocabulary_size)
        try:
            text = parse_trace(record, "it")
        except UserError as error:
            raise RowError(f"no trace: {error}") from error
        if not self.tokenizer.chat_template:
            raise RowError("no chat template: the tokenizer needs one for rows of text; give rows of input_ids")
        names: dict[str, str] = {}  # a stock model's tokenizer has no delimiters
        if self.markup.has_delimiters:
            spelled = self.tokenizer.convert_ids_to_tokens(list(self.markup.delimiters))
            names = dict(zip(DELIMITERS, spelled, strict=True))
        prompt, response = tokenize_trace(text, self.tokenizer, self.family, names)
        end = self.tokenizer.eos_token_id if self.markup.turn_end is None else self.markup.turn_end
        if end is not None and response[-1:] != [end]:
            response.append(end)
        return prompt + response, [IGNORE_INDEX] * len(prompt) + response

    def build(self, record: Any, number: int, name: str) -> tuple[Example | None, str]:
        """Convert a row to an example.

        Args:
            record: the row, see `tokenize`.
            number: index of the row over all sources, which decides on `sealed_share`.
            name: name of the row in error messages.

        Returns:
            The example, with "truncated" or an empty string; or None, with the reason why the row cannot be used.

        Raises:
            UserError: if the row has an expiry column that differs from the expiry under `law`.
        """
        try:
            tokens, labels = self.tokenize(record)
            self._check(record, tokens, labels, name)
        except RowError as error:
            return None, str(error)
        stage = self.stage_of_row(number)
        length = truncated_length(tokens, self.law, stage, self.max_length)
        if all(label == IGNORE_INDEX for label in labels[1:length]):  # no earlier token predicts the first token
            return None, f"no token to learn within {self.max_length} columns"
        arm = self.sealed_arms[number % len(self.sealed_arms)]
        example = make_example(tokens[:length], labels[:length], self.law, stage, arm)
        return example, "truncated" if length < len(tokens) else ""

    def _check(self, record: Mapping[str, Any], tokens: list[int], labels: list[int], name: str) -> None:
        """Check delimiters, law and expiry of the whole row, before truncation and independent of the stage."""
        if isinstance(self.law, MementoLaw):
            unbalanced = delimiter_error(tokens, self.markup, self.law.policy)
            if unbalanced:
                raise RowError(f"unbalanced delimiters: {unbalanced}")
            outside = delimiter_outside_turn(tokens, labels, self.markup, self.law.policy)
            if outside:
                raise RowError(f"delimiters outside the assistant's turn: {outside} has loss and no header before it")
        try:
            stage_law(self.law, "memento").erasures(tokens)
        except UserError as error:
            raise RowError(f"outside the law: {error}") from error
        if "expiry" in record:
            if not is_int_list(record["expiry"]) or not all(abs(index) <= NEVER for index in record["expiry"]):
                raise RowError("broken expiry: it must be a list of 64-bit integers, one per token, or absent")
            check_expiry(record["expiry"], tokens, self.law, name)


def is_sealed(number: int, share: float, seed: int = 42) -> bool:
    """Return whether a row is laid out with a sealed cache in the stage `memento`.

    Args:
        number: index of the row over all sources.
        share: expected share of sealed rows, from 0 to 1.
        seed: random seed of the trainer.
    """
    return bool(np.random.default_rng([seed, number]).random() < share)


@dataclass
class PreparationReport:
    """Report on the rows that were read and the examples made from them.

    Attributes:
        rows: number of rows read.
        used: number of rows that became examples.
        truncated: number of examples that were truncated.
        erasing: number of examples in which a token leaves before the end.
        dropped: number of rows that cannot be used, by reason.
        dropped_rows: name (`row`) and `reason` of the first dropped rows.
        columns: total number of columns of all examples.
        loss_tokens: number of these columns that carry loss.
        compression: mean over examples of the number of tokens divided by the peak number of KV tokens.
    """

    rows: int = 0
    used: int = 0
    truncated: int = 0
    erasing: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    dropped_rows: list[dict[str, str]] = field(default_factory=list)
    columns: int = 0
    loss_tokens: int = 0
    compression: float = 0.0

    def count_dropped(self, name: str, reason: str) -> None:
        """Count a row that cannot be used."""
        category = reason.partition(":")[0]
        self.dropped[category] = self.dropped.get(category, 0) + 1
        if len(self.dropped_rows) < MAX_LISTED_ROWS:
            self.dropped_rows.append({"row": name, "reason": reason})

    def count_used(self, example: Example) -> None:
        """Count an example."""
        self.used += 1
        self.erasing += bool((example.expiry < len(example.expiry)).any())
        self.columns += len(example.input_ids)
        self.loss_tokens += int((example.labels != IGNORE_INDEX).sum())
        tokens = len(np.unique(example.token_index))  # in a sealed layout, carriers have several columns
        ratio = tokens / max(1, int(alive(example.expiry).max()))
        self.compression += (ratio - self.compression) / self.used


def build_examples(
    example_builder: ExampleBuilder, sources: Sequence[str], limit: int | None, report: PreparationReport
) -> Iterator[Example]:
    """Yield the examples of all sources in order.

    Args:
        example_builder: converts rows to examples.
        sources: files or hub ids, see `ghosttrace.data.read.iter_records`.
        limit: maximum number of rows of each source; None reads all.
        report: updated with every row.

    Raises:
        UserError: if a source cannot be read, or a row cannot be used and `bad_rows` is "refuse".
    """
    for source in sources:
        for number, record in enumerate(islice(iter_records(source), limit)):
            name = f"{source}, row {record.get('id', number) if isinstance(record, Mapping) else number}"
            example, reason = example_builder.build(record, report.rows, name)
            report.rows += 1
            if example is None and example_builder.bad_rows == "refuse":
                raise UserError(f"{name}: {reason}: fix the row, or skip such rows with --bad-rows skip")
            if example is None:
                report.count_dropped(name, reason)
                continue
            report.truncated += reason == "truncated"
            report.count_used(example)
            yield example


def write_examples(
    path: Path, example_builder: ExampleBuilder, sources: Sequence[str], limit: int | None = None
) -> PreparationReport:
    """Write the examples of all sources to a Parquet file and return the report.

    The file is written atomically: it is complete or does not exist.

    Args:
        path: the file to write.
        example_builder: converts rows to examples.
        sources: files or hub ids, see `ghosttrace.data.read.iter_records`.
        limit: maximum number of rows of each source; None reads all.

    Raises:
        UserError: if `build_examples` raises it, no row can be used, or another law than Memento's erases nothing.
    """
    report = PreparationReport()
    schema = pyarrow.schema([(name, pyarrow.list_(pyarrow.int32())) for name in EXAMPLE_COLUMNS])
    partial, examples = path.with_suffix(".part"), build_examples(example_builder, sources, limit, report)
    with parquet.ParquetWriter(partial, schema) as writer:
        while batch := list(islice(examples, ROWS_PER_WRITE)):
            columns = {name: [example.columns[name].astype(np.int32) for example in batch] for name in EXAMPLE_COLUMNS}
            writer.write_table(pyarrow.table(columns, schema=schema))
    if not report.used:
        partial.unlink()
        reasons = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items()) or "there are no rows"
        first = "".join(f"; {dropped['row']}: {dropped['reason']}" for dropped in report.dropped_rows[:1])
        raise UserError(f"no row of {', '.join(sources)} can be trained on ({reasons}{first}): give other data")
    law = stage_law(example_builder.law, example_builder.stage)
    if not report.erasing and example_builder.stage != "full" and not isinstance(law, MementoLaw):
        partial.unlink()
        rows = f"the rows of {', '.join(sources)} within {example_builder.max_length} columns"
        raise UserError(
            f"the law {law.spec} erases nothing from {rows}: give longer rows, another --law, or --stage full"
        )
    commit_file(partial, path)
    return report


def open_examples(path: Path, cache_dir: Path, packed_width: int | None) -> Dataset:
    """Return the examples of a file as a memory-mapped data set with the additional column `seq_lengths`.

    Args:
        path: file written by `write_examples`.
        cache_dir: folder for the cache of the data set.
        packed_width: maximum number of columns of a packed row, filled by best fit (`trl.pack_dataset`); None puts one
            example in each row.
    """
    dataset = Dataset.from_parquet(str(path), cache_dir=str(cache_dir))
    if packed_width is None:
        dataset = dataset.map(lambda row: {"seq_lengths": [len(row["input_ids"])]})
    else:
        dataset = pack_dataset(dataset, packed_width, "bfd")
    return dataset.with_format("numpy")
