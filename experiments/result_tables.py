"""Tables of the results in `experiments/results`, as Markdown."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pandas as pd

from experiments.markdown import interval, markdown_table, number, percent
from experiments.toy_leakage import MODELS, PAPER_HOPS, select_rows

RESULTS = Path(__file__).parent / "results"
LEVELS = tuple(f"ledger-h{level}" for level in range(4))
LEVEL_HEADER = tuple(f"h = {level}" for level in range(4))
TOYS = ("toy-mixed", "toy-open")
ENDS = ("", "_low", "_high")


def read(name: str) -> pd.DataFrame:
    """Return a recorded table of results."""
    return pd.read_parquet(RESULTS / f"{name}.parquet")


def ledger_pair() -> str:
    """Accuracy of both toys by arm and number of hidden digits."""
    results, rows = read("ledger_pair"), []
    for model in TOYS:
        for arm, column, title in (
            ("memento", "accuracy", "`memento`"),
            ("placebo", "accuracy", "`placebo`"),
            ("restart", "accuracy", "`restart`"),
            ("swap", "follows_donor", "`swap`, answers that follow the donor"),
        ):
            part = results[(results["model"] == model) & (results["arm"] == arm)].set_index("bench")
            rows.append([model, title, *(percent(part.loc[level, column]) for level in LEVELS)])
    rows.append(["", "highest possible on a sealed cache", *(percent(10.0**-level) for level in range(4))])
    return markdown_table(["model", "arm", *LEVEL_HEADER], rows)


def headlines() -> str:
    """Three results in one line each."""
    pair = read("ledger_pair").set_index(["model", "arm", "bench"])["accuracy"]
    h0, h1 = (percent(pair["toy-mixed", "restart", level]) for level in LEVELS[:2])
    unfamiliar = percent(pair["toy-open", "restart", "ledger-h0"])
    leak = select_rows(read("toy_leakage"), given="text", **MODELS["all tokens"]).set_index("hop")
    columns = [f"bits{end}" for end in ENDS]
    first, second = (interval(leak.loc[hop, columns], 4) for hop in (0, 1))
    noise = read("defences").set_index("defence").loc["noise:0.3"]
    left = interval(noise[f"leak{end}"] for end in ENDS)
    lost = interval((100 * noise[f"lost{end}"] for end in ENDS), 0)
    return markdown_table(
        ["result", "measured", "caveat"],
        [
            [
                "A restart drop mixes missing information with an unfamiliar cache",
                f"`toy-mixed` under `restart`: {h0} % where the text suffices, {h1} % where one digit is missing; "
                f"`toy-open`: {unfamiliar} % where the text suffices",
                "one training of each model",
            ],
            [
                "In one training of the paper's toy, linear probes saw no leak beyond the text past its own memento",
                f"bits per digit: {first} in the block's own memento, {second} one block later",
                "fewer samples than the paper; the last layer alone",
            ],
            [
                "Noise on retained keys and values was the cheapest partial defence",
                f"noise of 0.3 leaves {left} bits of the notes and costs {lost} points",
                f'one model; the verdict of its audit was "{noise["verdict"]}"; no privacy bound',
            ],
        ],
    )


def toy_bits() -> str:
    """Ghost bits of the answer per trace, by model and level."""
    results, rows = read("toy_bits"), []
    for model in TOYS:
        for arm in ("restart", "placebo"):
            part = results[(results["model"] == model) & (results["arm"] == arm)]
            part = part[part["group"] == "answer"].set_index("source")
            rows.append([model, f"`{arm}`", *(number(part.loc[level, "bits_per_trace"]) for level in LEVELS)])
    rows.append(["", "entropy of the hidden digits", *(number(level * 3.321928) for level in range(4))])
    return markdown_table(["model", "arm", *LEVEL_HEADER], rows)


def probe_toys() -> str:
    """Bits that linear probes of values read beyond the text, by target, hop and layer."""
    results = read("probe_toys")
    linear = results[(results["probe"] == "linear") & (results["kv"] == "v")]
    rows = []
    for target, title in (("hidden-*", "hidden by the mementos"), ("note-*", "notes that the answer never needs")):
        for hop in range(3):
            part = linear[(linear["target"] == target) & (linear["hop"] == hop)]
            cells = []
            for model in ("toy-open", "toy-mixed"):
                read_bits = part[(part["model"] == model) & (part["condition"] == "open")].set_index("layer")["bits"]
                cells.append(" / ".join(number(read_bits[layer]) for layer in "123"))
            sealed = part.loc[part["condition"] == "sealed", "bits"].max()
            rows.append([title, str(hop), *cells, number(sealed)])
    return markdown_table(
        ["digits", "hop", "toy-open, layer 1 / 2 / 3", "toy-mixed, layer 1 / 2 / 3", "sealed, largest"], rows
    )


def toy_leakage() -> str:
    """What linear probes read from the paper's toy by hop, with and without its text."""
    results, rows = read("toy_leakage"), []
    exact = results[results["condition"] == "exact"]
    beyond = {name: select_rows(results, given="text", **MODELS[name]).set_index("hop") for name in MODELS}
    alone = select_rows(results, given="nothing", **MODELS["all tokens"]).set_index("hop")["accuracy"]
    for hop in beyond["all tokens"].index:
        columns = [f"bits{end}" for end in ENDS]
        cells = [interval(beyond[name].loc[hop, columns], 4) for name in ("all tokens", "untrained")]
        paper = percent(PAPER_HOPS[hop]) if hop in PAPER_HOPS else ""
        rows.append([str(hop), percent(alone[hop]), paper, *cells])
    best = exact.loc[exact["carrier"] == "text", "accuracy"].iloc[0]
    rows.append(["exact posterior of the text", percent(best), "", "", ""])
    return markdown_table(
        ["hop", "accuracy of a probe, %", "paper, %", "bits beyond the text, trained", "before training"], rows
    )


def passcode() -> str:
    """Accuracy on planted digits from the last layer's mementos, random weights, beside the paper's."""
    results = read("passcode")
    part = results[(results["model"] == "random-qwen3") & (results["probe"] == "linear") & (results["layer"] == "3")]
    paper = {0: "64.9", 1: "26.5"}
    rows = []
    for hop in (0, 1):
        cells = []
        for condition in ("open", "sealed"):
            same = part[(part["hop"] == hop) & (part["condition"] == condition)].iloc[0]
            cells.append(interval((100 * same[f"accuracy{end}"] for end in ENDS), digits=1))
        rows.append([str(hop), *cells, percent(part["chance"].iloc[0]), paper[hop]])
    return markdown_table(["hop", "open, %", "sealed, %", "chance, %", "paper, Qwen3-8B trained, %"], rows)


def probe_calibration() -> str:
    """How often the probes' intervals and alarms are right in simulations."""
    results, rows = read("probe_calibration"), []
    for name, title in (("3-bit code", "a code of 3 bits in Gaussian states"), ("digit", "a digit in Gaussian states")):
        part = results[results["simulation"] == name]
        near = (part["bits"] / part["truth"] - 1).abs() <= 0.05
        rows.append([title, "bits within 5 % of the truth", f"{near.sum()} of {len(part)}"])
    part = results[results["simulation"] == "nothing"]
    inside = (part["bits_low"] <= 0) & (part["bits_high"] >= 0)
    rows.append(["nothing planted", "0 lies in the interval", f"{inside.sum()} of {len(part)}"])
    part = results[results["simulation"] == "empty sweep"]
    alarms = part["false_alarm"].astype(bool).sum()
    rows.append(
        [f"sweep of {part['rows'].iloc[0]:.0f} rows, nothing planted", "false alarms", f"{alarms} of {len(part)}"]
    )
    return markdown_table(["simulation", "measure", "count"], rows)


def audit_calibration() -> str:
    """Verdicts over 100 audits for each planted leak."""
    results = read("audit_calibration")
    counts = results.groupby("leak")["verdict"].value_counts().unstack(fill_value=0)
    passed = counts[[name for name in ("not detected", "within the limit") if name in counts]].sum(axis=1)
    digits = results.groupby("leak")["digits"].first()
    header = [
        "planted in one layer of one memento",
        *(f"{leak:g} bits" + (f" over {digits[leak]} digits" if digits[leak] > 1 else "") for leak in counts.index),
    ]
    rows = [
        ["exit 10, a leak", *map(str, counts["leak"])],
        ["exit 11, not enough data", *map(str, counts["not enough data"])],
        ["exit 0", *map(str, passed)],
        ["of these 100, all probes fell back to the text", *map(str, results.groupby("leak")["fell_back"].sum())],
    ]
    return markdown_table(header, rows)


def defences() -> str:
    """Leak, accuracy lost and tokens of every defence."""
    rows = [
        [
            f"`{row['defence']}`" if row["defence"] != "sealed training" else "sealed training, then `restart`",
            interval(row[name] for name in ("leak", "leak_low", "leak_high")),
            interval((100 * row[f"lost{end}"] for end in ENDS), digits=0),
            f"{row['cost']:.2f}x",
            row["verdict"],
        ]
        for row in read("defences").to_dict("records")
    ]
    return markdown_table(
        ["defence", "bits of the notes that remain", "accuracy lost, points", "tokens", "verdict"], rows
    )


def adapted_drop() -> str:
    """Accuracy of toy-open under restart and memento while it is fine-tuned on sealed caches."""
    rows = [
        [f"`{arm}`", f"{steps:,}", *(percent(part.set_index("bench").loc[level, "accuracy"]) for level in LEVELS)]
        for arm in ("restart", "memento")
        for steps, part in read("adapted_drop").query("arm == @arm").groupby("steps")
    ]
    return markdown_table(["arm", "steps", *LEVEL_HEADER], rows)


def sealed_cost() -> str:
    """Accuracy and cost of the model trained on sealed caches beside the one trained on open caches."""
    rows = [
        [
            row["bench"],
            percent(row["sealed"]),
            percent(row["open"]),
            interval((100 * row[name] for name in ("effect", "low", "high")), digits=1),
            f"{row['tokens']:.2f}x",
            f"{row['latency']:.2f}x",
        ]
        for row in read("sealed_cost").to_dict("records")
    ]
    header = ["benchmark", "toy-sealed, %", "toy-open, %", "difference, points", "tokens decoded", "time"]
    return markdown_table(header, rows)


def curriculum() -> str:
    """Accuracy of both curricula with two seeds each."""
    results = read("curriculum")
    results = results[results["arm"] == "memento"].pivot_table(
        index=["curriculum", "seed"], columns="bench", values="accuracy"
    )
    rows = [
        [str(name), str(seed), *(percent(row[level]) for level in LEVELS)]
        for (name, seed), row in zip(results.index, results.to_dict("records"), strict=True)
    ]
    return markdown_table(["curriculum", "seed", *LEVEL_HEADER], rows)


def natural_secrets() -> str:
    """Bits about a random code in real traces that linear probes of values read beyond the text."""
    results, rows = read("natural_secrets"), []
    models = {"random": "random weights, 4 layers", "real": "SmolLM2-135M, first 8 layers, not trained with mementos"}
    for kind, in_memento in product(results["model"].unique(), (True, False)):
        table = results[(results["model"] == kind) & (results["in_memento"] == in_memento)]
        linear = table[table["probe"] == "linear"]
        best = {name: linear[linear["condition"] == name].nlargest(1, "bits").iloc[0] for name in ("open", "swapped")}
        cells = [interval([row[f"bits{end}"] for end in ENDS]) for row in best.values()]
        significant = "yes" if linear.loc[linear["condition"] == "open", "significant"].any() else "no"
        where = "block and memento" if in_memento else "block alone"
        rows.append([models[kind], where, *cells, significant, "yes" if not table["failures"].iloc[0] else "no"])
    header = ["model", "code in", "open, bits", "other blocks (control), bits", "open is significant", "valid"]
    return markdown_table(header, rows)


def audit_plants() -> str:
    """Verdict of an audit on each form of a planted secret."""
    results = read("audit_plants")
    rows = [
        [
            str(row["plant"]),
            str(row["exit_code"]),
            "text only" if row["fell_back"] else interval([row["bits"], row["bits_low"], row["bits_high"]]),
            interval([100 * row[f"exposed{end}"] for end in ENDS]),
            f"{row['probe']}, {row['kv']}, layer {row['layer'].replace('+', ' and ')}",
        ]
        for row in results.to_dict("records")
    ]
    header = ["planted", "exit code", "bits beyond the text", "traces whose secret is guessed, %", "best probe"]
    return markdown_table(header, rows)


RESULT_TABLES: dict[str, Callable[[], str]] = {
    "headlines": headlines,
    "ledger-pair": ledger_pair,
    "toy-bits": toy_bits,
    "probe-toys": probe_toys,
    "toy-leakage": toy_leakage,
    "passcode": passcode,
    "probe-calibration": probe_calibration,
    "audit-calibration": audit_calibration,
    "audit-plants": audit_plants,
    "natural-secrets": natural_secrets,
    "defences": defences,
    "adapted-drop": adapted_drop,
    "sealed-cost": sealed_cost,
    "curriculum": curriculum,
}
