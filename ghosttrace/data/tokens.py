"""Traces as a model reads them: token ids of prompt and response, whatever they were made from."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ghosttrace.data.read import TraceText, read_traces, reference_responses, tokenize_trace
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


TraceSources = str | Path | Sequence[str | Path | TokenTrace]
"""Files, run folders of ablations, hub ids of data sets, or traces in tokens."""


def load_traces(checkpoint: Checkpoint, sources: TraceSources, limit: int | None = None) -> list[TokenTrace]:
    """The traces of files, of data sets on the hub, or of the reference arm of finished ablations.

    Args:
        checkpoint: whose tokenizer and chat format to use; token ids are taken as they are.
        sources: one or more. Several files count as one source.
        limit: the first ones of each file, folder or data set only.

    Raises:
        UserError: there are none to be read there, or two of them have the same source and name.
    """
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    found = [one for one in given if isinstance(one, TokenTrace)]
    paths = [str(one) for one in given if not isinstance(one, TokenTrace)]
    for source in paths:
        if Path(source).is_dir():
            found += _of_run(Path(source), limit)
            continue
        name = Path(source).name
        for number, text in enumerate(read_traces(source, limit)):
            found.append(to_token_trace(checkpoint, name if len(paths) == 1 else "traces", f"{source}/{number}", text))
    counts = Counter((trace.source, trace.name) for trace in found)
    twice = next((key for key, count in counts.items() if count > 1), None)
    if twice:
        raise UserError(f"{twice[0]}, {twice[1]} is there twice: give each file, and one run of each bench, once")
    return found


def to_token_trace(checkpoint: Checkpoint, source: str, name: str, text: TraceText) -> TokenTrace:
    """A trace in the tokens and the chat format of a checkpoint."""
    tokens = checkpoint.tokenizer.convert_ids_to_tokens(list(checkpoint.markup.delimiters))
    names = dict(zip(DELIMITERS, tokens, strict=True))
    family = checkpoint.model.config.model_type
    return TokenTrace(source, name, *tokenize_trace(text, checkpoint.tokenizer, family, names))


def _of_run(folder: Path, limit: int | None) -> list[TokenTrace]:
    return [
        TokenTrace(row["bench"], f"{row['problem']}/{row['repetition']}", row["prompt_ids"], row["response_ids"])
        for row in reference_responses(folder)[:limit]
    ]
