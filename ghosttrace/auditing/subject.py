"""The subject of an audit: traces with secrets, prompts for the secrets, and graded problems."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ghosttrace.auditing.marked_secrets import ExcludedSecret, marked_task, read_marks
from ghosttrace.auditing.prompts import SecretPrompt, prompts_by_secret
from ghosttrace.bench import GENERATED_BENCHES, Bench
from ghosttrace.data.task import Task
from ghosttrace.data.tokens import TraceSources, load_traces
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.places import Role
from ghosttrace.probing.secrets import secret_kind
from ghosttrace.probing.tasks import is_natural, make_task, secret_bench


@dataclass(frozen=True)
class AuditSubject:
    """Subject of an audit.

    Attributes:
        task: Traces with secrets.
        prompts: For each secret, the prompt that a user types to get it. Secrets without a prompt are not prompted for.
        excluded: Marked secrets that cannot be audited.
        benches: Graded problems on which the accuracy of a defence is measured; empty for the user's own traces.
    """

    task: Task
    prompts: Mapping[str, SecretPrompt] = field(default_factory=dict)
    excluded: tuple[ExcludedSecret, ...] = ()
    benches: tuple[Bench, ...] = ()


@dataclass(frozen=True)
class SecretSource:
    """Source of the secrets: a benchmark, traces in which they are planted or searched, or a file that marks them.

    Attributes:
        bench: Benchmark with planted secrets; used if `traces` is None.
        traces: Traces in which the secret is planted or searched.
        secret: Kind of secret to plant in the traces, or to search in their blocks.
        marks: File that marks secrets in the traces, instead of `secret`.
        block: Number of the block that holds the secret, or of the turn of `role`, counted from 0; None for the first
            that can.
        role: Role of the turns that hold secrets, under other laws than Memento's.
        samples: Number of problems of the benchmark, or of secrets planted in each trace.
        limit: Maximum number of traces from each source.
        hops: Number of blocks that must follow the secret's block.
        seed: Random seed of problems, secrets and insertion points.
    """

    bench: str | Bench = "ledger-h3"
    traces: TraceSources | None = None
    secret: str = "digits:5"
    marks: Path | None = None
    block: int | None = None
    role: Role = "tool"
    samples: int = 8000
    limit: int | None = None
    hops: int = 1
    seed: int = 0

    def task(self, checkpoint: Checkpoint) -> tuple[Task, list[ExcludedSecret]]:
        """Return the traces with all their secrets, and the excluded secrets.

        Raises:
            UserError: There are no such traces or secrets.
        """
        if self.marks is not None:
            if self.traces is None:
                raise UserError("--secrets marks secrets in traces: give the traces with --traces")
            loaded = load_traces(checkpoint, self.traces, self.limit)
            return marked_task(loaded, checkpoint, read_marks(self.marks), self.hops, self.role)
        arguments = {name: getattr(self, name) for name in ("block", "role", "samples", "hops", "limit", "seed")}
        return make_task(checkpoint, self.bench, self.traces, self.secret, **arguments), []

    def prompts(self) -> list[str]:
        """Return the default prompts of the kind of secret; empty for secrets that were not planted."""
        if self.traces is None:
            return list(secret_bench(self.bench).prompts.values())
        return [] if self.marks is not None or is_natural(self.secret) else [secret_kind(self.secret).prompt]

    def benches(self, limit: int) -> tuple[Bench, ...]:
        """Return the benchmark with at most `limit` graded problems; empty for the user's own traces."""
        if self.traces is not None:
            return ()
        if isinstance(self.bench, str):
            return (GENERATED_BENCHES[self.bench](limit, self.seed),)
        return (replace(self.bench, problems=self.bench.problems[:limit]),)


def make_subject(
    checkpoint: Checkpoint,
    source: SecretSource,
    targets: Sequence[str] | None = None,
    prompts: Sequence[str] | None = None,
    utility_limit: int = 100,
) -> AuditSubject:
    """Build the subject of an audit.

    Args:
        checkpoint: Checkpoint with the tokenizer and the chat format.
        source: Source of the secrets.
        targets: Name patterns of the targets to audit, as in a shell (`note-*`). None: all targets.
        prompts: Prompts that a user types to get a secret. None: the default prompts of the kind of secret.
        utility_limit: Number of problems on which the accuracy of a defence is measured.

    Raises:
        UserError: There are no such traces, secrets or targets, or a prompt asks for no target.
    """
    full_task, excluded = source.task(checkpoint)
    task = full_task if targets is None else full_task.select_targets(targets)
    texts = list(prompts) if prompts else source.prompts()
    secret_prompts = prompts_by_secret(texts, full_task, task, checkpoint, strict=bool(prompts))
    return AuditSubject(task, secret_prompts, tuple(excluded), source.benches(utility_limit))
