"""Options that `probe` and `audit` share: the secrets, the sites to probe, and the parsing of these options."""

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ghosttrace.bench import SECRET_BENCHES
from ghosttrace.cli.options import BatchTokens, Limit, Traces, parse_integers
from ghosttrace.errors import UserError
from ghosttrace.probing.carriers import Pooling

if TYPE_CHECKING:
    from ghosttrace.probing.settings import ProbeSettings

SecretBench = Annotated[
    str, typer.Option(help=f"Benchmark with secrets, used without --traces: {', '.join(SECRET_BENCHES)}.")
]
SecretName = Annotated[
    str,
    typer.Option(
        help="Secret to plant in the traces of --traces: digits:N, key:N, name, email, word or word:FILE; or a secret "
        "that their blocks or turns already contain: last-number, operation or regex:PATTERN."
    ),
]
SecretBlock = Annotated[
    int | None,
    typer.Option(
        help="0-based index of the block that contains the secret, at least 1 for the causal control; under other laws "
        "than Memento's, index of the turn of --in. Default: 1, under other laws 0."
    ),
]
SecretRole = Annotated[
    str,
    typer.Option(
        "--in",
        help="Turns of a chat that contain the secret, under other laws than Memento's: tool (the results of tools) or "
        "assistant.",
    ),
]
Targets = Annotated[
    str | None,
    typer.Option(help="Comma-separated targets, as names or patterns such as note-*. Default: all targets."),
]
Samples = Annotated[
    int, typer.Option(help="Number of traces to generate from --bench, or of secrets to plant in each trace.")
]
Hops = Annotated[
    str,
    typer.Option(
        help="Comma-separated hops to probe: blocks between the erased block and the carrier, 0 is its own memento; "
        "under other laws, turns or groups of eight tokens."
    ),
]
Layers = Annotated[
    str | None, typer.Option(help="Comma-separated 0-based indices of layers to probe, e.g. 3,35. Default: all layers.")
]
PoolName = Annotated[
    str,
    typer.Option(
        "--pool", help="How the tokens of a carrier are combined: all concatenated, the last N concatenated, or mean."
    ),
]
Mlp = Annotated[
    bool,
    typer.Option(help="Also fit an MLP: at the best site of each hop, in an audit everywhere."),
]
WithinTraces = Annotated[
    bool, typer.Option(help="Let training and test set share base traces; they still share no secrets.")
]
Seed = Annotated[int, typer.Option(help="Random seed of traces, secrets, splits and probes.")]


def secret_options(
    secret: SecretName = "digits:5",
    block: SecretBlock = None,
    role: SecretRole = "tool",
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
    """Declare the options whose defaults are the same for `probe` and `audit`."""


def probe_settings(options: dict[str, Any]) -> "ProbeSettings":
    """Return the settings of a probe sweep from the command-line options.

    Args:
        options: options of `probe`, or options of `audit` with `by_head` and `joint` filled in. Without carriers, those
            of Memento's law are filled in.

    Raises:
        UserError: an option has an invalid value.
    """
    from ghosttrace.probing.settings import ProbeSettings

    layers = parse_integers(options["layers"], "--layers")
    carriers, kv = (tuple(dict.fromkeys((options[name] or "memento").split(","))) for name in ("carriers", "kv"))
    return ProbeSettings(
        kinds=carriers,
        hops=tuple(dict.fromkeys(parse_integers(options["hops"], "--hops") or ())),
        layers=tuple(sorted(set(layers))) if layers else None,
        kv=kv,
        pool=parse_pool(options["pool"]),
        **{name: options[name] for name in ("by_head", "joint", "mlp", "within_traces", "seed")},
    )


def parse_pool(text: str) -> Pooling:
    """Return the pooling that `--pool` names: `all`, `mean`, or a positive number of last tokens.

    Raises:
        UserError: the text is none of these.
    """
    if text in ("all", "mean"):
        return "all" if text == "all" else "mean"
    if not re.fullmatch(r"[1-9]\d*", text):
        raise UserError(f"--pool must be all, mean or a number of last tokens, not {text!r}")
    return int(text)
