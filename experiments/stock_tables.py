"""Tables of `experiments/stock_model.py`: a stock pretrained model under several laws."""

from collections.abc import Callable

from experiments.markdown import interval, markdown_table, number, percent
from experiments.result_tables import ENDS, read

ARMS = ("restart", "restart-renumbered", "placebo")


def stock_probes() -> str:
    """Bits about a number that left, by law, carrier and hop: at the layer with most, and in the sealed cache."""
    results = read("stock_probes")
    results = results[(results["probe"] == "linear") & (results["target"] == "digit-*") & (results["hop"] >= 0)]
    rows = []
    for site, part in results.groupby(["law", "carrier", "hop"], sort=False):
        law, carrier, hop = map(str, tuple(site))  # type: ignore[arg-type]
        opened, sealed = (part[part["condition"] == condition] for condition in ("open", "sealed"))
        if not len(opened):
            continue
        best = opened.loc[opened["bits"].idxmax()]
        cells = [3 * best[f"bits{end}"] for end in ENDS]  # of three digits
        where = f"{'keys' if best['kv'] == 'k' else 'values'} of layer {best['layer']}"
        verdict = "yes" if best["significant"] else "no"
        sealed_best = 3 * sealed["bits"].max()
        rows.append([f"`{law}`", f"`{carrier}`", hop, interval(cells, 2), where, verdict, number(sealed_best, 2)])
    header = ["law", "carrier", "hop", "bits, open", "where", "significant", "most bits, sealed"]
    return markdown_table(header, rows)


def stock_bits() -> str:
    """Ghost bits per token after the first erasure, by source, law and arm."""
    results = read("stock_bits")
    whole = results[results["by"] == "all"]
    rows = []
    for source, law in whole[["source", "law"]].drop_duplicates().itertuples(index=False):
        part = whole[(whole["source"] == source) & (whole["law"] == law)]
        by_arm = part.set_index("arm")
        cells = [interval((by_arm.loc[arm, f"bits{end}"] for end in ENDS), 3) for arm in ARMS]
        rows.append([source, f"`{law}`", *cells])
    return markdown_table(["text", "law", *(f"`{arm}`" for arm in ARMS)], rows)


def stock_accuracy() -> str:
    """Accuracy on the sessions of an agent, by law and arm."""
    results = read("stock_accuracy")
    rows = []
    for (bench, law), part in results.groupby(["bench", "law"], sort=False):
        by_arm = part.set_index("arm")
        cells = []
        for arm in ("full", "memento", "restart"):
            low, high = (percent(by_arm.loc[arm, f"accuracy{end}"]) for end in ENDS[1:])
            cells.append(f"{percent(by_arm.loc[arm, 'accuracy'])} [{low}, {high}]")
        rows.append([f"`{bench}`", f"`{law}`", *cells])
    header = ["benchmark", "law", "`full`, %", "`memento`, %", "`restart`, %"]
    return markdown_table(header, rows)


STOCK_TABLES: dict[str, Callable[[], str]] = {
    "stock-probes": stock_probes,
    "stock-bits": stock_bits,
    "stock-accuracy": stock_accuracy,
}
