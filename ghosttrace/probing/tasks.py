"""The task that a probe or an audit works on: traces with secrets, from a benchmark, planted, or as they stand."""

from collections.abc import Sequence

from ghosttrace.bench import GENERATED_BENCHES, Bench
from ghosttrace.data.task import Task
from ghosttrace.data.tokens import TraceSources, load_traces
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.natural import natural_task
from ghosttrace.probing.planting import plant_secrets
from ghosttrace.probing.secrets import secret_kind

NATURAL_SECRETS = ("last-number", "operation", "regex")
"""Secrets that blocks hold anyway; all others are planted."""


def is_natural(secret: str) -> bool:
    """Whether a secret is one that blocks hold anyway, such as `regex:PATTERN`."""
    return secret.partition(":")[0] in NATURAL_SECRETS


def secret_bench(bench: str | Bench) -> Bench:
    """A benchmark with secrets of its own, by name or as it is.

    Raises:
        UserError: the benchmark has none.
    """
    found = GENERATED_BENCHES[bench](1, 0) if isinstance(bench, str) and bench in GENERATED_BENCHES else bench
    if isinstance(found, str) or found.secrets is None:
        name = found if isinstance(found, str) else found.name
        raise UserError(
            f"{name} has no secrets of its own: give --traces, or a --bench of {', '.join(GENERATED_BENCHES)}"
        )
    return found


def make_task(
    checkpoint: Checkpoint,
    bench: str | Bench = "ledger-h3",
    traces: TraceSources | None = None,
    secret: str = "digits:5",
    *,
    block: int = 1,
    samples: int = 6000,
    hops: int = 2,
    limit: int | None = None,
    seed: int = 0,
    targets: Sequence[str] | None = None,
) -> Task:
    """Traces with secrets, and the questions about them.

    Args:
        checkpoint: whose tokenizer and chat format to use.
        bench: without traces, a benchmark with secrets of its own, by name or as an object.
        traces: what the secret is planted in or looked for: files, run folders, hub ids, or traces in tokens.
        secret: what is planted (`digits:N`, `key:N`, `name`, `email`, `word`, `word:FILE`), or what blocks hold
            anyway (`last-number`, `operation`, `regex:PATTERN`).
        block: which block holds the secret, counted from 0.
        samples: problems of the benchmark, or secrets planted in each trace.
        hops: how many blocks after the secret's own are needed.
        limit: traces of each source.
        seed: of problems, secrets and places.
        targets: which parts of the secrets to ask for, as a shell matches names (`note-*`); all if None.

    Raises:
        UserError: there are no such traces or secrets.
    """
    if block < 1:
        raise UserError("--block is at least 1: a memento must stand before the secret, for the causal control")
    if min(samples, 1 if limit is None else limit) < 1:
        raise UserError("--samples and --limit are at least 1")
    if traces is None:
        chosen = secret_bench(bench)
        assert chosen.secrets is not None
        task = chosen.secrets(checkpoint, samples, seed, block)
    elif is_natural(secret):
        task = natural_task(load_traces(checkpoint, traces, limit), checkpoint, secret, hops)
    else:
        kind = secret_kind(secret)
        task = plant_secrets(load_traces(checkpoint, traces, limit), checkpoint, kind, block, samples, hops, seed)
    return task if targets is None else task.select_targets(targets)
