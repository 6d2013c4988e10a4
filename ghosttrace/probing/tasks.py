"""Tasks of probes and audits: traces with secrets from a benchmark, planted secrets, or natural attributes."""

from collections.abc import Sequence

from ghosttrace.bench import GENERATED_BENCHES, SECRET_BENCHES, Bench
from ghosttrace.data.task import Task
from ghosttrace.data.tokens import TraceSources, load_traces
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import MementoLaw
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.natural import natural_task
from ghosttrace.probing.places import Role
from ghosttrace.probing.planting import plant_secrets
from ghosttrace.probing.secrets import secret_kind

NATURAL_SECRETS = ("last-number", "operation", "regex")
"""Natural attributes of blocks; all other secrets are planted."""


def is_natural(secret: str) -> bool:
    """Return whether a secret is a natural attribute, such as `regex:PATTERN`, and not planted."""
    return secret.partition(":")[0] in NATURAL_SECRETS


def secret_bench(bench: str | Bench) -> Bench:
    """Return a benchmark that defines secrets of its own.

    Args:
        bench: Name of the benchmark, or the benchmark itself.

    Raises:
        UserError: The benchmark is unknown or defines no secrets.
    """
    resolved = GENERATED_BENCHES[bench](1, 0) if isinstance(bench, str) and bench in GENERATED_BENCHES else bench
    if isinstance(resolved, str) or resolved.secrets is None:
        name = resolved if isinstance(resolved, str) else resolved.name
        raise UserError(f"{name} has no secrets of its own: give --traces, or a --bench of {', '.join(SECRET_BENCHES)}")
    return resolved


def make_task(
    checkpoint: Checkpoint,
    bench: str | Bench = "ledger-h3",
    traces: TraceSources | None = None,
    secret: str = "digits:5",
    *,
    block: int | None = None,
    role: Role = "tool",
    samples: int = 6000,
    hops: int = 2,
    limit: int | None = None,
    seed: int = 0,
    targets: Sequence[str] | None = None,
) -> Task:
    """Return a task: traces with secrets, and the targets to predict.

    Args:
        checkpoint: Provides the tokenizer and the chat format.
        bench: Name of a benchmark with secrets of its own, or the benchmark itself; used without `traces`.
        traces: Traces to plant the secret in or to search for the attribute: files, run folders, hub ids, or
            tokenized traces.
        secret: Secret to plant (`digits:N`, `key:N`, `name`, `email`, `word`, `word:FILE`), or natural attribute of
            the blocks (`last-number`, `operation`, `regex:PATTERN`); used with `traces`.
        block: Index of the block with the secret, counted from 0; at least 1. Under other laws than Memento's, index
            of the turn of `role`. None for the second block, or the first such turn. Ignored for natural attributes.
        role: Role of the turns of a chat that hold the secret, under other laws than Memento's: `tool`, for the
            result of a tool, or `assistant`.
        samples: Number of problems of the benchmark, or of secrets planted in each trace.
        hops: Number of blocks required after the block with the secret.
        limit: Maximum number of traces per source.
        seed: Random seed of problems, secrets and insertion points.
        targets: Shell patterns of the targets to keep (`note-*`); None for all.

    Raises:
        UserError: An argument is invalid, or no trace supports the task.
    """
    if min(samples, 1 if limit is None else limit) < 1:
        raise UserError("--samples and --limit must be at least 1")
    number = secret_number(checkpoint, block)
    if checkpoint.law.replayed:
        raise UserError(
            f"{checkpoint.law.spec} replays recorded tokens, and a planted secret changes them: give another law"
        )
    if traces is None:
        resolved = secret_bench(bench)
        check_law(resolved, checkpoint)
        assert resolved.secrets is not None
        task = resolved.secrets(checkpoint, samples, seed, number)
    elif is_natural(secret):
        task = natural_task(load_traces(checkpoint, traces, limit), checkpoint, secret, hops, role=role)
    else:
        kind = secret_kind(secret)
        loaded = load_traces(checkpoint, traces, limit)
        task = plant_secrets(loaded, checkpoint, kind, number, samples, hops, seed, role)
    return task if targets is None else task.select_targets(targets)


def check_law(bench: Bench, checkpoint: Checkpoint) -> None:
    """Check that the secrets of a benchmark stand in what the law of a checkpoint erases.

    Raises:
        UserError: The benchmark has blocks and the law is not Memento's, or it has chats and the law is.
    """
    chats, memento = any(problem.messages for problem in bench.problems), isinstance(checkpoint.law, MementoLaw)
    if memento and chats:
        raise UserError(f"the secrets of {bench.name} stand in the results of tools: give a law such as --law tools:0")
    if not memento and not chats:
        raise UserError(
            f"the secrets of {bench.name} stand in blocks, which the law {checkpoint.law.spec} does not know: give "
            "--bench agent-erased, or --traces with chats"
        )


def secret_number(checkpoint: Checkpoint, block: int | None) -> int:
    """Return the index of the block or turn with the secret: the given one, or the first one that can hold it.

    Raises:
        UserError: The index is negative, or names the first block, before which there is no memento.
    """
    first = 1 if isinstance(checkpoint.law, MementoLaw) else 0
    if block is not None and block < first:
        reason = ": the causal control needs a memento before the secret" if first else ""
        raise UserError(f"--block must be at least {first}{reason}")
    return first if block is None else block
