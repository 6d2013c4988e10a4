"""Tables of `experiments/stock_model.py`: a stock pretrained model under several laws."""

from collections.abc import Callable
from math import log2

from experiments.markdown import interval, markdown_table, number
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


STOCK_TABLES: dict[str, Callable[[], str]] = {
    "stock-probes": stock_probes,
}
