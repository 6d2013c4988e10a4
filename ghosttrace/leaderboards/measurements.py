"""What a finished run measured, in the columns of a leaderboard: one measurement per benchmark and defence.

Every number is read from the run's summary.json, and nothing is computed again.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from math import inf
from typing import Any

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy
from ghosttrace.leaderboards.columns import KINDS
from ghosttrace.report.command import repeat_command
from ghosttrace.runs.folder import REFERENCE_ARM
from ghosttrace.runs.result import RunResult, reading_run

NO_DEFENCE = "none"
ERASES_NOTHING = "full"
"""The arm under which the whole cache stays, so that it neither closes nor alters the ghost channel."""
INTERVAL = ("", "_low", "_high")


@dataclass(frozen=True)
class Subject:
    """What a row of a leaderboard is about.

    Attributes:
        benchmark: name of the benchmark, or of the traces.
        model_sha256: SHA-256 of the weights.
        law: the law of eviction, and for Memento's its policy.
        defence: the defence of an audit, or the arm of an ablation.
    """

    benchmark: str
    model_sha256: str
    law: str
    defence: str


@dataclass(frozen=True)
class Source:
    """The run that a measurement comes from.

    Attributes:
        kind: its command, one of `KINDS`.
        name: name of its folder.
        command: what repeats it; None if it was started from Python with objects that cannot be written.
        versions: software versions.
    """

    kind: str
    name: str
    command: str | None
    versions: str


@dataclass(frozen=True)
class Measurement:
    """What one run measured about one subject.

    Attributes:
        subject: what was measured.
        source: the run.
        model: name, vocabulary and data type of the model, by column of the leaderboard.
        values: what was measured, and whether the run is valid, by column of the leaderboard.
        conditions: what must agree, besides the benchmark, for a comparison with another measurement of this kind.
    """

    subject: Subject
    source: Source
    model: Mapping[str, str]
    values: Mapping[str, Any]
    conditions: str


def measurements(run: RunResult, name: str) -> list[Measurement]:
    """Return what a run measured.

    Args:
        run: a finished run.
        name: name of its folder.

    Raises:
        UserError: the run is of another command, it measured no defence, or its records are damaged.
    """
    if run.command not in KINDS:
        raise UserError(
            f"{run.folder} is a run of {run.command}, which a leaderboard does not show: give runs of "
            f"{', '.join(KINDS[:-1])} or {KINDS[-1]}"
        )
    with reading_run(run.folder):
        configuration, hashes = run.configuration, run.configuration["sha256"]
        versions = ", ".join(f"{package} {version}" for package, version in configuration["versions"].items())
        source = Source(run.command, name, repeat_command(configuration), versions)
        model = {"model": configuration["model"], "tokenizer_sha256": hashes["tokenizer"]}
        model |= {"dtype": configuration["dtype"]}
        validity = {"valid": run.valid, "failures": None if run.valid else "; ".join(run.failures)}
        law, found = law_text(configuration), []
        for benchmark, defence, values, conditions in READERS[run.command](run):
            subject = Subject(benchmark, hashes["model"], law, defence)
            found.append(Measurement(subject, source, model, validity | values, conditions))
    if not found:
        raise UserError(f"{run.folder} measured control arms alone: leave it out")
    return found


Found = tuple[str, str, dict[str, Any], str]
"""Benchmark, defence, values by column, and conditions of a comparison."""


def _ablation(run: RunResult) -> Iterator[Found]:
    arms, benches = run.configuration["arms"], run.configuration["benches"]
    for row in run.summary["results"]:
        arm = arms[row["arm"]]
        if arm["control"] or row["arm"] == ERASES_NOTHING:
            continue
        bench = benches[row["bench"]]
        names = ("n_problems", "peak_kv_tokens", "peak_kv_bytes", "auc_kv_tokens", "auc_kv_bytes")
        values = {name: row[name] for name in names} | {"problems_sha256": bench["sha256"]}
        values |= {f"accuracy{end}": row[f"accuracy{end}"] for end in INTERVAL}
        if row["arm"] != REFERENCE_ARM:
            values |= {f"effect{end}": row[f"effect{end}"] for end in INTERVAL}
        conditions = [bench[name] for name in ("sha256", "template", "sampling", "repetitions")]
        yield row["bench"], arm_text(arm), values, json.dumps(conditions, sort_keys=True)


def _ghost_bits(run: RunResult) -> Iterator[Found]:
    for row in run.summary["results"]:
        arm = run.configuration["arms"][row["arm"]]
        if arm["control"] or row["by"] != "all":
            continue
        values = {f"bits{end}": row[f"bits{end}"] for end in INTERVAL} | {"bits_per_trace": row["bits_per_trace"]}
        values |= {"n_bits_traces": row["n_traces"], "bits_traces_sha256": run.configuration["traces"]["sha256"]}
        yield row["source"], arm_text(arm), values, ""


def _audit(run: RunResult) -> Iterator[Found]:
    summary, configuration = run.summary, run.configuration
    task, defence = configuration["task"], summary["defence"]
    leak = highest_finding(summary["results"], "bits")
    values = {"audit_traces_sha256": task["sha256"], "n_audit_traces": summary["traces"], "verdict": summary["verdict"]}
    values |= _estimate("leak", leak) | _estimate("exposed", highest_finding(summary["results"], "exposed share"))
    if leak is not None:
        values |= {"leak_secret": leak["secret"], "leak_attack": leak["attack"], "leak_fell_back": leak["fell_back"]}
    costs = ("extra_prefill_tokens", "prefill_ratio", "latency_ratio", "kv_ratio")
    values |= {name: defence[name] for name in ("utility_unit", *costs)}
    values |= {f"utility{end}": defence[f"accuracy{end}"] for end in INTERVAL}
    values |= {f"utility_effect{end}": defence[f"effect{end}"] for end in INTERVAL}
    settings = {name: value for name, value in configuration["settings"].items() if name != "batch_tokens"}
    conditions = [task["sha256"], settings, list(configuration["targets"]), configuration["attacks"]]
    yield task["name"], defence["name"], values, json.dumps(conditions, sort_keys=True)


READERS: dict[str, Callable[[RunResult], Iterator[Found]]] = {
    "ablate": _ablation,
    "bits": _ghost_bits,
    "audit": _audit,
}


def highest_finding(results: list[dict[str, Any]], unit: str) -> dict[str, Any] | None:
    """Return the finding of the defended cache that decides the verdict: of a unit, the one with the highest low end.

    Args:
        results: rows of an audit's summary.json.
        unit: unit of the finding.
    """
    rows = [row for row in results if row["condition"] == "open" and row["gate"] and row["unit"] == unit]
    return max(
        rows, key=lambda row: [-inf if row[name] is None else row[name] for name in ("low", "estimate")], default=None
    )


def _estimate(name: str, finding: Mapping[str, Any] | None) -> dict[str, Any]:
    if finding is None:
        return {}
    return {name: finding["estimate"], f"{name}_low": finding["low"], f"{name}_high": finding["high"]}


def arm_text(arm: Mapping[str, Any]) -> str:
    """Return an arm of run.json as a defence of an audit is written, with its options if they are not the default.

    Example:
        >>> arm_text({"name": "noise", "options": {"size": 0.3}})
        'noise:0.3'
        >>> whole = {"heads": None, "carrier": None, "last": None}
        >>> arm_text({"name": "restart", "options": {"part": {"layers": [1, 2], "kv": ["v"], **whole}}})
        'restart (layers 1, 2; kv v)'
    """
    name, options = arm["name"], arm["options"]
    if name == REFERENCE_ARM:
        return NO_DEFENCE
    if "size" in options:
        return f"{name}:{options['size']:g}"
    part = {key: value for key, value in options.get("part", {}).items() if value is not None and value != ["k", "v"]}
    words = [f"{key} {', '.join(map(str, value)) if isinstance(value, list) else value}" for key, value in part.items()]
    return f"{name} ({'; '.join(words)})" if words else str(name)


def law_text(configuration: Mapping[str, Any]) -> str:
    """Return the law of a run in words, so that equal texts are equal laws of the same model.

    Args:
        configuration: content of run.json.

    Example:
        >>> law_text({"policy": {"mask_delimiters": False, "keep_last_n_blocks": 1}})
        'memento (delimiters kept, keep_last_n_blocks 1)'
    """
    if "law" in configuration:
        return str(configuration["law"]["spec"])
    policy = asdict(Policy(**configuration["policy"]))
    words = ["delimiters erased" if policy["mask_delimiters"] else "delimiters kept"]
    for field in fields(Policy)[1:]:
        if policy[field.name] != field.default:
            words.append(f"{field.name} {policy[field.name]}")
    return f"memento ({', '.join(words)})"
