"""The report of an ablation as one self-contained HTML page.

The page needs no network, model or other file. Data are embedded as JSON; style and script are inlined from
`templates/`. The content security policy blocks every other script, because responses may contain arbitrary HTML.
Numbers, tables and the verdict are plain HTML; the script draws charts, answers and traces.
"""

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup as Safe

from ghosttrace.report.ablation.decomposition import component_estimate
from ghosttrace.report.ablation.page_data import (
    answer_table,
    peak_ratios,
    quantiles,
    read_samples_without_texts,
    read_traces,
    to_json,
)
from ghosttrace.report.command import repeat_command
from ghosttrace.report.findings import KV_NAMES
from ghosttrace.runs.folder import REFERENCE_ARM

TEMPLATES = Path(__file__).parents[1] / "templates"
SCRIPTS = ("draw.js", "charts.js", "answers.js", "reader.js", "page.js")
UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1.0))


def render(config: Mapping[str, Any], summary: Mapping[str, Any], samples: Path) -> str:
    """Return the page as text.

    Args:
        config: Content of run.json.
        summary: Content of summary.json.
        samples: Path of samples.parquet.
    """
    results = summary["results"]
    samples_without_texts = read_samples_without_texts(samples)
    traces = read_traces(samples, samples_without_texts, config)
    main = summary["headline_arm"]
    script = "\n".join((TEMPLATES / name).read_text("utf-8") for name in SCRIPTS)
    shown = sum(len(group["arms"]) for group in traces)
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"percent": percent, "points": points, "interval": interval, "p": p_value, "plain": plain}
    environment.filters |= {"component": component_estimate}
    environment.filters |= {"equivalence": equivalence, "joint_interval": joint_interval}
    return environment.get_template("report.html.j2").render(
        config=config,
        title=title(config, results),
        size=size(results),
        results=results,
        benches=benches(results),
        arms={name: arm["summary"] for name, arm in config["arms"].items()},
        swaps=[row for row in results if row.get("follows_donor") is not None],
        at_k=summary.get("at_k", []),
        decomposition=summary.get("decomposition", []),
        failures=summary["failures"],
        main=main,
        margin=config["settings"].get("margin"),
        arm_description=arm_description(main, config) if main else None,
        reference=REFERENCE_ARM,
        peak_unit=byte_unit(row["peak_kv_bytes"] for row in results),
        area_unit=byte_unit(row["auc_kv_bytes"] / 1000 for row in results),
        responses={"shown": shown, "all": len(samples_without_texts)},
        command=repeat_command(config),
        colours=colours(config),
        data=Safe(to_json(payload(config, summary, samples_without_texts, traces, main))),
        style=Safe((TEMPLATES / "report.css").read_text("utf-8")),
        script=Safe(script),
        digest=b64encode(sha256(f"\n{script}\n".encode()).digest()).decode(),
    )


def payload(
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    samples_without_texts: pd.DataFrame,
    traces: Sequence[dict[str, Any]],
    main: str | None,
) -> dict[str, Any]:
    """Return the data that the page's script draws, as a JSON-compatible dict."""
    results = summary["results"]
    largest = max(
        (row for row in results if row["arm"] == main), key=lambda row: abs(row["effect"]), default=results[0]
    )
    compression: dict[str, dict[str, list[float]]] = {}
    for group in traces:
        for arm, trace in group["arms"].items():
            if trace["compression"] is not None:
                compression.setdefault(group["bench"], {}).setdefault(arm, []).append(trace["compression"])
    return {
        "reference": REFERENCE_ARM,
        "main": main,
        "colours": colours(config),
        "arms": list(dict.fromkeys(row["arm"] for row in results)),
        "benches": benches(results),
        "start": largest["bench"],
        "ceilings": {name: bench.get("ceiling") for name, bench in config.get("benches", {}).items()},
        "results": results,
        "at_k": summary.get("at_k", []),
        "answers": answer_table(samples_without_texts),
        "peak_ratio": peak_ratios(samples_without_texts),
        "compression": {
            bench: {arm: quantiles(pd.Series(values)) for arm, values in arms.items()}
            for bench, arms in compression.items()
        },
        "traces": traces,
    }


def benches(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the benchmarks in order of appearance."""
    return list(dict.fromkeys(row["bench"] for row in results))


def title(config: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    """Return the title of the page: model and benchmarks."""
    names = benches(results)
    family = config.get("options", {}).get("bench") if len(names) > 1 else None
    return f"{config['model']} on {family or ', '.join(names)}"


def size(results: Sequence[Mapping[str, Any]]) -> str:
    """Describe the number of problems and of repetitions."""
    counts = {}
    for row in results:
        times = round(row["n_samples"] / row["n_problems"])
        counts[row["bench"]] = row["n_problems"], "once" if times == 1 else f"{times} times"
    if len(set(counts.values())) > 1:
        return ", ".join(f"{n} problems of {bench} answered {times}" for bench, (n, times) in counts.items())
    n, times = counts[results[0]["bench"]]
    return f"{n} problems{f' of each of {len(counts)} benchmarks' if len(counts) > 1 else ''}, answered {times}"


def colours(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the colour of each arm."""
    return {name: arm["colour"] for name, arm in config["arms"].items()}


def arm_description(arm: str, config: Mapping[str, Any]) -> str:
    """Describe an arm and the part of the cache it acts on, as the subject of a sentence."""
    part = config["settings"]["part"]
    chosen = [f"{kind} {', '.join(map(str, part[kind]))}" for kind in ("layers", "heads") if part[kind] is not None]
    chosen += [f"{KV_NAMES[part['kv'][0]]} alone"] if len(part["kv"]) == 1 else []
    return f"{config['arms'][arm]['headline']} ({'; '.join([arm, *chosen])})"


def percent(value: float | None) -> str:
    """Format a share in percent; None, where there is no such share, as `none`."""
    return "none" if value is None else f"{100 * value:.1f}"


def points(value: float) -> str:
    """Format a difference of shares in percentage points, with sign."""
    return f"{round(100 * value, 1) + 0.0:+.1f}".replace("-", "−")


def interval(row: Mapping[str, Any], name: str) -> str:
    """Format the interval of a row's `accuracy`, `effect`, `pass` or `maj` in brackets."""
    form = points if name == "effect" else percent
    return f"[{form(row[f'{name}_low'])}, {form(row[f'{name}_high'])}]"


def joint_interval(row: Mapping[str, Any]) -> str:
    """Format the interval of a row's effect that holds for all arms of the benchmark together."""
    return f"[{points(row['effect_low_joint'])}, {points(row['effect_high_joint'])}]"


def equivalence(row: Mapping[str, Any], margin: float) -> str:
    """Return whether a row's arm was shown to be equivalent to `memento` within a margin in points."""
    return f"{'equivalent' if row['equivalent'] else 'not shown to be equivalent'} within ±{margin:g} points"


def p_value(value: float | None) -> str:
    """Format a p-value; values below 0.0001 as a bound, None as an empty string."""
    if value is None:
        return ""
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def plain(value: Any) -> str:
    """Format a setting: lists with commas, booleans as yes or no, None as `not set`."""
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "none"
    if value is None:
        return "not set"
    return str(value) if not isinstance(value, bool) else "yes" if value else "no"


def byte_unit(sizes: Iterable[float]) -> tuple[str, float]:
    """Return the largest unit in which the largest size (bytes) is at least 0.1, and its number of bytes."""
    largest = max(sizes)
    return next((name, size) for name, size in UNITS if largest >= size / 10 or size == 1)
