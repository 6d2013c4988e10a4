"""What is audited: traces with secrets, the prompts that ask for them, and graded problems where there are any."""

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
from ghosttrace.probing.secrets import secret_kind
from ghosttrace.probing.tasks import is_natural, make_task, secret_bench


@dataclass(frozen=True)
class AuditSubject:
    """What is audited.

    Attributes:
        task: traces with secrets.
        prompts: for each secret, what a user types to get it; secrets without one are not asked for.
        excluded: secrets that were left out, and why.
        benches: graded problems on which a defence's accuracy is measured; none if the traces are the user's own.
    """

    task: Task
    prompts: Mapping[str, SecretPrompt] = field(default_factory=dict)
    excluded: tuple[ExcludedSecret, ...] = ()
    benches: tuple[Bench, ...] = ()


@dataclass(frozen=True)
class SecretSource:
    """Where the secrets come from.

    Attributes:
        bench: without traces, a benchmark with secrets of its own.
        traces: what the secret is planted in or looked for.
        secret: what is planted in the traces, or what their blocks hold anyway.
        marks: a file that marks secrets in the traces, instead of `secret`.
        block: which block holds the secret, counted from 0.
        samples: problems of the benchmark, or secrets planted in each trace.
        limit: traces of each source.
        hops: how many blocks after the secret's own are needed.
        seed: of problems, secrets and places.
    """

    bench: str | Bench = "ledger-h3"
    traces: TraceSources | None = None
    secret: str = "digits:5"
    marks: Path | None = None
    block: int = 1
    samples: int = 8000
    limit: int | None = None
    hops: int = 1
    seed: int = 0

    def task(self, checkpoint: Checkpoint) -> tuple[Task, list[ExcludedSecret]]:
        """The traces with all their secrets, and those left out.

        Raises:
            UserError: there are none as asked.
        """
        if self.marks is not None:
            if self.traces is None:
                raise UserError("--secrets marks what stands in traces: give them with --traces")
            return marked_task(
                load_traces(checkpoint, self.traces, self.limit), checkpoint, read_marks(self.marks), self.hops
            )
        more = {name: getattr(self, name) for name in ("block", "samples", "hops", "limit", "seed")}
        return make_task(checkpoint, self.bench, self.traces, self.secret, **more), []

    def prompts(self) -> list[str]:
        """The prompts that go with a kind of secret; none with those that were not planted."""
        if self.traces is None:
            return list(secret_bench(self.bench).prompts.values())
        return [] if self.marks is not None or is_natural(self.secret) else [secret_kind(self.secret).prompt]

    def benches(self, limit: int) -> tuple[Bench, ...]:
        """Graded problems of the benchmark, at most so many; none with traces of the user's own."""
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
    """The traces, secrets and prompts of an audit.

    Args:
        checkpoint: whose tokenizer and chat format to use.
        source: where the secrets come from.
        targets: which parts of the secrets to audit, as a shell matches names; all if None.
        prompts: what a user types to get a secret, instead of the prompts that go with its kind.
        utility_limit: problems on which a defence's accuracy is measured.

    Raises:
        UserError: there are no such traces or secrets, or a prompt asks for nothing.
    """
    whole, excluded = source.task(checkpoint)
    task = whole if targets is None else whole.select_targets(targets)
    given = list(prompts) if prompts else source.prompts()
    found = prompts_by_secret(given, whole, task, checkpoint, strict=bool(prompts))
    return AuditSubject(task, found, tuple(excluded), source.benches(utility_limit))
