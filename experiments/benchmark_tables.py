"""Tables of timings in `benchmarks/results` and of the load test, as Markdown."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.markdown import markdown_table, ratios
from ghosttrace.serving.routes import routes_table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def read(name: str) -> dict[str, Any]:
    """Return a recorded benchmark."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def decoding() -> str:
    """Decoding throughput beside transformers."""
    results, rows = read("decoding"), []
    for size in ("tiny", "mid"):
        millions = results[size]["parameters"] / 1e6
        for batch in results[size]["batches"]:
            rows.append(
                [
                    f"{size}, {millions:.1f}M",
                    str(batch["rows"]),
                    ratios(batch["ratios"]["plain"]),
                    ratios(batch["ratios"]["erasing"]),
                    f"{batch['erasing_over_plain']:.2f}x (limit {batch['erasing_over_plain_limit']:.2f}x)",
                    f"{batch['kv_reduction_mean']:.1f}x / {batch['kv_reduction_peak']:.1f}x",
                ]
            )
    header = [
        "model",
        "rows",
        "without erasing / transformers",
        "erasing / transformers",
        "erasing / without",
        "KV saved, mean / peak",
    ]
    return markdown_table(header, rows)


def refilling() -> str:
    """Throughput with refilled rows relative to whole batches."""
    rows = [
        [
            f"{part['size']}, {'erasing' if part['arm'] == 'erasing' else 'nothing erased'}",
            str(part["rows"]),
            str(part["requests"]),
            ratios(part["speedups_cpu"]),
            ratios(part["speedups"]),
            f"{part['fewer_steps']:.2f}x",
            f"{part['limit']:.2f}x",
        ]
        for part in read("refilling")["measured"]
    ]
    return markdown_table(["model", "rows", "requests", "CPU time", "wall time", "fewer steps", "limit"], rows)


def refilling_at_paper_lengths() -> str:
    """Steps and bytes of decoding an 8B model at the paper's lengths, by the size of a group."""
    rows = []
    for part in read("refilling")["paper_lengths"]:
        name = "erasing" if part["arm"] == "erasing" else "nothing erased"
        for what, title in (("steps", "steps"), ("bytes", "bytes read")):
            found = [f"{part[f'fewer_{what}'][batches]:.2f}x" for batches in ("2", "4", "8")]
            whole = f"{list(part[f'fewer_{what}'].values())[-1]:.2f}x"
            rows.append([name, str(part["rows"]), title, *found, whole, f"{part[f'limit_{what}']:.2f}x"])
    header = ["cache", "rows", "saved", *(f"{batches} batches" for batches in (2, 4, 8)), "all samples", "limit"]
    return markdown_table(header, rows)


def masks() -> str:
    """Cost of expiry and block masks for one long batch."""
    results = read("masks")
    milliseconds = 1000 * sum(results["median_seconds"].values())
    return markdown_table(
        ["", f"{results['rows']} sequences of {results['length']:,} tokens"],
        [
            ["expiry and block mask", f"{milliseconds:.0f} ms"],
            ["share of one forward pass", f"{100 * results['share_of_forward']:.3f} %"],
            ["block mask", f"{results['block_mask_bytes'] / 1e6:.1f} MB"],
            ["dense mask", f"{results['dense_mask_bytes'] / 1e6:,.0f} MB"],
        ],
    )


def probe_fits() -> str:
    """Speed of the batched probe fitter beside scikit-learn."""
    rows = [
        [
            f"{row['scikit_learn_C']:g}",
            ratios(row["one_core"]["ratios"]["grid"]),
            ratios(row["all_cores"]["ratios"]["grid"]),
            f"{100 * row['grid']['from_minimum']['accuracy_difference_max']:.2f}",
            f"{100 * row['scikit_learn_from_minimum']['accuracy_difference_max']:.2f}",
            str(row["scikit_learn_out_of_iterations"]),
        ]
        for row in read("probes")["rows"]
    ]
    header = [
        "C",
        "one core",
        "two cores",
        "accuracy off the minimum, points",
        "scikit-learn's",
        "scikit-learn fits out of iterations",
    ]
    return markdown_table(header, rows)


def extraction() -> str:
    """Cost of masked passes and of reading states, relative to a plain causal pass."""
    rows = []
    for name, cores in (("extraction", "one"), ("extraction_two_cores", "two")):
        results = read(name)
        for size in ("mid", "tiny"):
            cells = (ratios(results[size]["ratios"][kind]) for kind in ("masked", "open", "sealed"))
            rows.append([size, cores, *cells])
    return markdown_table(["model", "cores", "masked pass", "with open states read", "with sealed states read"], rows)


def training() -> str:
    """Cost of forward and backward passes, relative to plain causal attention."""
    rows = [
        [
            row["pass"],
            f"{row['length']:,}",
            *(f"{row['ratio'][name]:.2f}x ({row['limit'][name]:.2f}x)" for name in ("segments", "sealed")),
            f"{row['ratio']['dense']:.2f}x",
        ]
        for row in read("training")["rows"]
    ]
    return markdown_table(["pass", "tokens", "memento stage (limit)", "sealed stage (limit)", "dense mask"], rows)


def serving() -> str:
    """Throughput of vLLM with erasure, relative to stock vLLM."""
    results, rows = read("serving"), []
    for name, pages in (("scarce", "a quarter of the pages"), ("ample", "pages for all")):
        part = results[name]
        for variant, title in (("erasing", "erasing"), ("keeping", "erasure set up, every block kept")):
            if variant in part["speedups"]:
                preempted = f"{max(part['preempted'][variant])} / {max(part['preempted']['stock'])}"
                rows.append(
                    [pages, title, ratios(part["speedups"][variant]), ratios(part["speedups_cpu"][variant]), preempted]
                )
    return markdown_table(["cache", "variant", "wall time", "CPU time", "preemptions, erasing / stock"], rows)


def soak() -> str:
    """Counts and checks of the load test of the vLLM server."""
    record = json.loads((ROOT / "experiments" / "results" / "soak.json").read_text())
    rows = [["minutes", f"{record['minutes']:g}"], ["clients", str(record["clients"])], ["pages", str(record["pages"])]]
    rows += [["requests", f"{sum(record['counts'].values()):,}"]]
    rows += [[what, "yes" if passed else "NO"] for what, passed in record["checks"].items()]
    return markdown_table(["", "recorded"], rows)


def any_law() -> str:
    """Cost of a masked pass and of decoding under a window, relative to a stock model without eviction."""
    results = read("any_law")
    one_pass = results["pass"]
    visible = f"{100 * one_pass['visible_pairs']:.0f} %"
    rows = [["masked pass, time", f"{one_pass['tokens']:,}", "1", visible, ratios(one_pass["ratios"])]]
    for part in results["decoding"]:
        what = ["decoding, tokens per second", f"{part['tokens']:,}", str(part["rows"]), ""]
        rows.append([*what, ratios(part["ratios"])])
    return markdown_table(["what", "tokens", "rows", "visible pairs", "relative to no eviction"], rows)


def allocator() -> str:
    """What keeping freed memory saves, command by command."""
    rows = []
    for name, found in read("allocator").items():
        cells = [ratios(found["ratios"])]
        for what, form in (("kernel", "{:.0%}"), ("memory", "{:.1f} GB")):
            values = (statistics.median(run[what] for run in found[side]) for side in ("without", "with"))
            cells.append(" / ".join(form.format(value).replace("%", " %") for value in values))
        rows.append([name, *cells])
    header = ["command, model", "CPU time, with / without", "in the kernel, without / with"]
    return markdown_table([*header, "peak memory, without / with"], rows)


BENCHMARK_TABLES: dict[str, Callable[[], str]] = {
    "decoding": decoding,
    "refilling": refilling,
    "refilling-at-paper-lengths": refilling_at_paper_lengths,
    "masks": masks,
    "probe-fits": probe_fits,
    "extraction": extraction,
    "training": training,
    "serving": serving,
    "any-law": any_law,
    "allocator": allocator,
    "soak": soak,
    "routes": routes_table,
}
