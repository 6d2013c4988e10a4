"""Loading of traces from any source as token ids of prompt and response."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ghosttrace.data.chats import ChatMessages
from ghosttrace.data.read import TraceText, read_traces, reference_responses, tokenize_trace
from ghosttrace.errors import UserError
from ghosttrace.law.markup import DELIMITERS
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.runs.paths import check_path


@dataclass(frozen=True)
class TokenTrace:
    """A trace as token ids.

    Attributes:
        source: the file, benchmark or run that the trace comes from.
        name: name of the trace, unique within its source.
        prompt, response: token ids.
    """

    source: str
    name: str
    prompt: list[int]
    response: list[int]

    @property
    def ids(self) -> list[int]:
        """Token ids of prompt and response together."""
        return [*self.prompt, *self.response]


TraceSources = str | Path | Sequence[str | Path | TokenTrace]
"""Files, run folders of ablations, hub ids of data sets, or token traces; one or several."""


def load_traces(checkpoint: Checkpoint, sources: TraceSources, limit: int | None = None) -> list[TokenTrace]:
    """Load traces from files, from data sets on the hub, or from the reference arm of finished ablations.

    Args:
        checkpoint: provides tokenizer and chat format; token traces and run folders are used unchanged.
        sources: one source or several. Several files count as one source named `traces`.
        limit: maximum number of traces per file, folder or data set.

    Raises:
        UserError: a source cannot be read or is empty, or two traces have the same source and name.
    """
    source_list = [sources] if isinstance(sources, str | Path) else list(sources)
    traces = [item for item in source_list if isinstance(item, TokenTrace)]
    paths = [str(item) for item in source_list if not isinstance(item, TokenTrace)]
    for path in paths:
        check_path(Path(path))
        if Path(path).is_dir():
            traces += _traces_of_run(Path(path), limit)
            continue
        source = Path(path).name if len(paths) == 1 else "traces"
        for number, text in enumerate(read_traces(path, limit)):
            traces.append(to_token_trace(checkpoint, source, f"{path}/{number}", text))
    counts = Counter((trace.source, trace.name) for trace in traces)
    duplicate = next((key for key, count in counts.items() if count > 1), None)
    if duplicate:
        raise UserError(f"{', '.join(duplicate)} occurs twice: give each file, and one run of each bench, once")
    return traces


def to_token_trace(checkpoint: Checkpoint, source: str, name: str, text: TraceText | ChatMessages) -> TokenTrace:
    """Tokenise a trace with the tokenizer and the chat format of a checkpoint."""
    names: dict[str, str] = {}  # a stock model's tokenizer has no delimiters
    if checkpoint.markup.has_delimiters:
        tokens = checkpoint.tokenizer.convert_ids_to_tokens(list(checkpoint.markup.delimiters))
        names = dict(zip(DELIMITERS, tokens, strict=True))
    family = checkpoint.model.config.model_type
    return TokenTrace(source, name, *tokenize_trace(text, checkpoint.tokenizer, family, names))


def _traces_of_run(folder: Path, limit: int | None) -> list[TokenTrace]:
    return [
        TokenTrace(row["bench"], f"{row['problem']}/{row['repetition']}", row["prompt_ids"], row["response_ids"])
        for row in reference_responses(folder)[:limit]
    ]
