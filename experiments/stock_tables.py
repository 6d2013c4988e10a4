"""Tables of `experiments/stock_model.py` and `stock_audit.py`: a stock pretrained model under several laws."""

from collections.abc import Callable
from math import log2

from experiments.markdown import interval, markdown_table, number, percent
from experiments.result_tables import ENDS, read


def stock_probes() -> str:
    """Bits about a number that left, by law, carrier and hop: at the layer with most, and in the sealed cache."""
    results = read("stock_probes")
    results = results[(results["probe"] == "linear") & (results["target"] == "digit-*") & (results["hop"] >= 0)]
    rows = []
    for law, carrier, hop in results[["law", "carrier", "hop"]].drop_duplicates().itertuples(index=False):
        part = results[(results["law"] == law) & (results["carrier"] == carrier) & (results["hop"] == hop)]
        opened, sealed = (part[part["condition"] == condition] for condition in ("open", "sealed"))
        if not len(opened):
            continue
        best = opened.loc[opened["bits"].idxmax()]
        cells = [3 * best[f"bits{end}"] for end in ENDS]  # of three digits
        where = f"{'keys' if best['kv'] == 'k' else 'values'} of layer {best['layer']}"
        verdict = "yes" if best["significant"] else "no"
        sealed_best = 3 * sealed["bits"].max()
        rows.append([f"`{law}`", f"`{carrier}`", str(hop), interval(cells, 2), where, verdict, number(sealed_best, 2)])
    opened_title = f"bits of {number(log2(900), 1)}, open"
    header = ["law", "carrier", "hop", opened_title, "where", "significant", "most bits, sealed"]
    return markdown_table(header, rows)


def stock_bits() -> str:
    """Bits per token that an arm costs the true text: after the first erasure, and right after each of them."""
    results = read("stock_bits")
    rows = []
    for source, law, arm in results[["source", "law", "arm"]].drop_duplicates().itertuples(index=False):
        part = results[(results["source"] == source) & (results["law"] == law) & (results["arm"] == arm)]
        cells = []
        for by, group in (("all", "all"), ("distance", "1"), ("distance", "5-16"), ("distance", "17-64")):
            row = part[(part["by"] == by) & (part["group"] == group)]
            cells.append(interval((row.iloc[0][f"bits{end}"] for end in ENDS), 3) if len(row) else "")
        rows.append([source, f"`{law}`", f"`{arm}`", str(part.iloc[0]["n_traces"]), *cells])
    header = ["text", "law", "arm", "traces", "all tokens", "first after an erasure", "5th to 16th", "17th to 64th"]
    return markdown_table(header, rows)


def stock_accuracy() -> str:
    """Accuracy on the sessions of an agent, by benchmark and arm."""
    results = read("stock_accuracy")
    rows = []
    for row in results.to_dict("records"):
        low, high = (percent(row[f"accuracy{end}"]) for end in ENDS[1:])
        effect = interval((100 * row[f"effect{end}"] for end in ENDS), 1)
        cells = [f"`{row['arm']}`", f"{percent(row['accuracy'])} [{low}, {high}]", effect]
        rows.append([f"`{row['bench']}`", f"`{row['law']}`", *cells])
    return markdown_table(["benchmark", "law", "arm", "accuracy, %", "against `memento`, points"], rows)


def stock_audit() -> str:
    """Verdicts of the audits of an agent's session, by defence."""
    results = read("stock_audit")
    bits = results[results["unit"] == "bits"]
    rows = []
    for defence, part in bits.groupby("defence", sort=False):
        first, by_condition = part.iloc[0], part.set_index("condition")
        cells = [
            interval((by_condition.loc[condition, end] for end in ("estimate", "low", "high")), 2)
            if condition in by_condition.index
            else ""
            for condition in ("open", "sealed")
        ]
        verdict = f"{first['verdict']} ({first['exit_code']})"
        rows.append([f"`{defence}`", verdict, *cells, number(first["unknown_bits"], 1), str(first["traces"])])
    header = ["defence", "verdict (exit code)", "bits by `attribute`", "the same, sealed control", "of bits", "traces"]
    return markdown_table(header, rows)


STOCK_TABLES: dict[str, Callable[[], str]] = {
    "stock-probes": stock_probes,
    "stock-bits": stock_bits,
    "stock-accuracy": stock_accuracy,
    "stock-audit": stock_audit,
}
