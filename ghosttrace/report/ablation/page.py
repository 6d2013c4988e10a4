"""The report of an ablation: one HTML page, complete in itself.

The page needs no network, no model and no other file: data travel as JSON in it, style and script are
inlined from `templates/`, and its content security policy lets no other script run, whatever a model
wrote into its responses. Numbers, tables and the verdict are plain HTML; charts, answers and traces
are drawn by the script.
"""

import shlex
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup as Safe

from ghosttrace.report.ablation.page_data import (
    answer_table,
    peak_ratios,
    quantiles,
    read_samples_without_texts,
    read_traces,
    to_json,
)
from ghosttrace.runs.folder import REFERENCE_ARM

TEMPLATES = Path(__file__).parents[1] / "templates"
SCRIPTS = ("draw.js", "charts.js", "answers.js", "reader.js", "page.js")
UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1.0))


def render(config: Mapping[str, Any], summary: Mapping[str, Any], samples: Path) -> str:
    """The page as text.

    Args:
        config: run.json.
        summary: summary.json.
        samples: samples.parquet.
    """
    results = summary["results"]
    samples_without_texts = read_samples_without_texts(samples)
    traces = read_traces(samples, samples_without_texts, config)
    main = summary["headline_arm"]
    script = "\n".join((TEMPLATES / name).read_text("utf-8") for name in SCRIPTS)
    shown = sum(len(group["arms"]) for group in traces)
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"percent": percent, "points": points, "interval": interval, "p": p_value, "plain": plain}
    return environment.get_template("report.html.j2").render(
        config=config,
        title=title(config, results),
        size=size(results),
        results=results,
        benches=benches(results),
        arms={name: arm["summary"] for name, arm in config["arms"].items()},
        swaps=[row for row in results if row.get("follows_donor") is not None],
        at_k=summary.get("at_k", []),
        failures=summary["failures"],
        main=main,
        arm_description=arm_description(main, config) if main else None,
        reference=REFERENCE_ARM,
        peak_unit=byte_unit(row["peak_kv_bytes"] for row in results),
        area_unit=byte_unit(row["auc_kv_bytes"] / 1000 for row in results),
        left_out={"shown": shown, "all": len(samples_without_texts)},
        command=command(config),
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
    """What the page's script draws from."""
    results = summary["results"]
    moved = max((row for row in results if row["arm"] == main), key=lambda row: abs(row["effect"]), default=results[0])
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
        "start": moved["bench"],
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
    """The benchmarks, in order."""
    return list(dict.fromkeys(row["bench"] for row in results))


def title(config: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    """What was run on what."""
    names = benches(results)
    asked = config.get("options", {}).get("bench") if len(names) > 1 else None
    return f"{config['model']} on {asked or ', '.join(names)}"


def size(results: Sequence[Mapping[str, Any]]) -> str:
    """How many problems were answered how often."""
    found = {}
    for row in results:
        times = round(row["n_samples"] / row["n_problems"])
        found[row["bench"]] = row["n_problems"], "once" if times == 1 else f"{times} times"
    if len(set(found.values())) > 1:
        return ", ".join(f"{n} problems of {bench} answered {times}" for bench, (n, times) in found.items())
    n, times = found[results[0]["bench"]]
    return f"{n} problems{f' of each of {len(found)} benchmarks' if len(found) > 1 else ''}, answered {times}"


def colours(config: Mapping[str, Any]) -> dict[str, str]:
    """The colour of each arm."""
    return {name: arm["colour"] for name, arm in config["arms"].items()}


def arm_description(arm: str, config: Mapping[str, Any]) -> str:
    """What an arm does, and to which part of the cache, as the subject of a sentence."""
    part = config["settings"]["part"]
    chosen = [f"{what} {', '.join(map(str, part[what]))}" for what in ("layers", "heads") if part[what] is not None]
    chosen += [{"k": "keys alone", "v": "values alone"}[part["kv"][0]]] if len(part["kv"]) == 1 else []
    return f"{config['arms'][arm]['headline']} ({'; '.join([arm, *chosen])})"


def command(config: Mapping[str, Any]) -> str | None:
    """The command line that makes the same run, None where none was recorded (a run from Python)."""
    words = ["ghosttrace", "ablate"]
    for name, value in config.get("options", {}).items():
        if name == "mask_delimiters" and value is not None:
            words.append("--mask-delimiters" if value else "--keep-delimiters")
        elif value is not None:
            words += [f"--{name.replace('_', '-')}", shlex.quote(str(value))]
    return " ".join(words) if config.get("options") else None


def percent(value: float) -> str:
    """A share in percent."""
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    """A difference of shares in percentage points, signed."""
    return f"{round(100 * value, 1) + 0.0:+.1f}".replace("-", "−")


def interval(row: Mapping[str, Any], name: str) -> str:
    """The interval of a row's `accuracy`, `effect`, `pass` or `maj`, in brackets."""
    form = points if name == "effect" else percent
    return f"[{form(row[f'{name}_low'])}, {form(row[f'{name}_high'])}]"


def p_value(value: float | None) -> str:
    """A p-value; very small ones as a bound."""
    if value is None:
        return ""
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def plain(value: Any) -> str:
    """A setting for people."""
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "none"
    if value is None:
        return "not set"
    return str(value) if not isinstance(value, bool) else "yes" if value else "no"


def byte_unit(sizes: Iterable[float]) -> tuple[str, float]:
    """The unit in which the largest of some sizes in bytes is at least 0.1, and its bytes."""
    largest = max(sizes)
    return next((name, size) for name, size in UNITS if largest >= size / 10 or size == 1)
