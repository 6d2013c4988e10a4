"""Traces as a model reads them: token ids of prompt and response, whatever they were made from."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ghosttrace.bench import Bench
from ghosttrace.data.read import TraceText, encode, read_traces, responses
from ghosttrace.errors import UserError
from ghosttrace.law.markup import DELIMITERS
from ghosttrace.model.checkpoint import Checkpoint


@dataclass(frozen=True)
class TokenTrace:
    """A trace in tokens.

    Attributes:
        source: the file, benchmark or run that it comes from.
        name: which trace of its source.
        prompt, response: token ids.
    """

    source: str
    name: str
    prompt: list[int]
    response: list[int]

    @property
    def ids(self) -> list[int]:
        """Prompt and response."""
        return [*self.prompt, *self.response]


def traces_of(checkpoint: Checkpoint, sources: Sequence[str], limit: int | None = None) -> list[TokenTrace]:
    """The traces of files, of data sets on the hub, or of the reference arm of finished ablations.

    Args:
        checkpoint: whose tokenizer and chat format to use; a run's token ids are taken as they are.
        sources: paths, run folders, or hub ids. Several files count as one source.
        limit: the first ones of each only.

    Raises:
        UserError: there are none to be read there, or two of them have the same source and name.
    """
    found: list[TokenTrace] = []
    for source in sources:
        if Path(source).is_dir():
            found += _of_run(Path(source), limit)
            continue
        name = Path(source).name
        for number, text in enumerate(read_traces(source, limit)):
            found.append(_encoded(checkpoint, name if len(sources) == 1 else "traces", f"{source}/{number}", text))
    counts = Counter((trace.source, trace.name) for trace in found)
    twice = next((key for key, count in counts.items() if count > 1), None)
    if twice:
        raise UserError(f"{twice[0]}, {twice[1]} is there twice: give each file, and one run of each bench, once")
    return found


def reference_traces(checkpoint: Checkpoint, bench: Bench) -> list[TokenTrace]:
    """The problems of a benchmark with the responses that a perfect model gives.

    Raises:
        UserError: the benchmark does not know them.
    """
    if bench.response is None:
        raise UserError(f"{bench.name} has no traces of its own: give --traces a file, a run folder or a hub id")
    return [
        _encoded(checkpoint, bench.name, problem.id, TraceText(problem.prompt, bench.response(problem)))
        for problem in bench.problems
    ]


def _encoded(checkpoint: Checkpoint, source: str, name: str, text: TraceText) -> TokenTrace:
    tokens = checkpoint.tokenizer.convert_ids_to_tokens(list(checkpoint.markup.delimiters))
    names = dict(zip(DELIMITERS, tokens, strict=True))
    family = checkpoint.model.config.model_type
    return TokenTrace(source, name, *encode(text, checkpoint.tokenizer, family, names))


def _of_run(folder: Path, limit: int | None) -> list[TokenTrace]:
    return [
        TokenTrace(row["bench"], f"{row['problem']}/{row['repetition']}", row["prompt_ids"], row["response_ids"])
        for row in responses(folder)[:limit]
    ]
