"""The options that `probe` and `audit` share: which secrets, where probes look, and how the options are read."""

import re
from typing import Annotated, Any

import typer

from ghosttrace.bench import GENERATED_BENCHES
from ghosttrace.cli.options import BatchTokens, Limit, Traces, parse_integers
from ghosttrace.errors import UserError
from ghosttrace.probing.carriers import Pooling
from ghosttrace.probing.sweep import ProbeSettings

SecretBench = Annotated[
    str, typer.Option(help=f"Without --traces: a bench with secrets of its own: {', '.join(GENERATED_BENCHES)}.")
]
SecretName = Annotated[
    str,
    typer.Option(
        help="What is planted in the traces: digits:N, key:N, name, email, word, word:FILE; or what their blocks "
        "hold anyway: last-number, operation, regex:PATTERN."
    ),
]
SecretBlock = Annotated[int, typer.Option(help="Which block holds the secret, counted from 0.")]
Targets = Annotated[str | None, typer.Option(help="Parts of the secrets to look for, e.g. note-*; all by default.")]
Samples = Annotated[int, typer.Option(help="Of a bench, or planted in each trace.")]
Hops = Annotated[str, typer.Option(help="Blocks after the secret's own.")]
Layers = Annotated[str | None, typer.Option(help="All of them by default, e.g. 3,35.")]
PoolName = Annotated[str, typer.Option("--pool", help="Tokens of a carrier: all, the last N, or their mean.")]
Mlp = Annotated[bool, typer.Option(help="Probe the best site of each hop by an MLP too.")]
WithinTraces = Annotated[bool, typer.Option(help="Let train and test share base traces, not secrets.")]
Seed = Annotated[int, typer.Option(help="Of traces, secrets, splits and probes.")]


def secret_options(
    secret: SecretName = "digits:5",
    block: SecretBlock = 1,
    targets: Targets = None,
    traces: Traces = None,
    limit: Limit = None,
    layers: Layers = None,
    pool: PoolName = "all",
    mlp: Mlp = True,
    within_traces: WithinTraces = False,
    batch_tokens: BatchTokens = 16_384,
    seed: Seed = 0,
) -> None:
    """Which secrets, in which traces, and where probes look; what `probe` and `audit` preset alike."""


def probe_settings(options: dict[str, Any]) -> ProbeSettings:
    """What to probe, from the options.

    Raises:
        UserError: an option is not of the values it can take.
    """
    layers = parse_integers(options["layers"], "--layers")
    carriers, kv = (tuple(dict.fromkeys(options[name].split(","))) for name in ("carriers", "kv"))
    return ProbeSettings(
        kinds=carriers,
        hops=tuple(dict.fromkeys(parse_integers(options["hops"], "--hops") or ())),
        layers=tuple(sorted(set(layers))) if layers else None,
        kv=kv,
        pool=parse_pool(options["pool"]),
        **{name: options[name] for name in ("by_head", "joint", "mlp", "within_traces", "seed")},
    )


def parse_pool(text: str) -> Pooling:
    """`all`, `mean`, or a number."""
    if text in ("all", "mean"):
        return "all" if text == "all" else "mean"
    if not re.fullmatch(r"[1-9]\d*", text):
        raise UserError(f"--pool is all, mean, or how many of a carrier's last tokens to take, not {text!r}")
    return int(text)
