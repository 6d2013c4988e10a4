"""The table of RESULTS.md: what is claimed, what the paper reports, what was measured here, and what it leaves open.

Every figure of this project is read from `experiments/results`. The paper's figures are quoted with their place in
arXiv 2604.09852.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from experiments.decomposition_tables import cell
from experiments.markdown import interval, markdown_table, number, percent
from experiments.result_tables import ENDS, read
from experiments.toy_leakage import MODELS, PAPER_HOPS, select_rows


@dataclass(frozen=True)
class Claim:
    """One row of the table.

    Attributes:
        claim: What is claimed, no stronger than the evidence.
        paper: The paper's figure with its model, or nothing.
        measure: Returns the figures measured here.
        model: The models measured here, and how many trainings of each.
        command: The command that measures them again.
        open: What the figures do not show.
    """

    claim: str
    paper: str
    measure: Callable[[], str]
    model: str
    command: str
    open: str


def points(row: Any, name: str = "effect") -> str:
    """Return an effect with its interval in percentage points."""
    return interval((100 * row[f"{name}{end}"] for end in ENDS), 1)


def one_row(results: pd.DataFrame, **equal: Any) -> pd.Series:
    """Return the row of a table with these values."""
    for name, value in equal.items():
        results = results[results[name] == value]
    return results.iloc[0]


def story_row(model: str, condition: str, arm: str) -> Any:
    """Return the row of `story_channel` for a checkpoint, a condition and an arm."""
    return one_row(read("story_channel"), model=model, bench=f"story-{condition}", arm=arm)


def closing() -> str:
    """Effect of `restart` where the text omits a needed value, and where it suffices."""
    toy = one_row(read("ledger_pair"), model="toy-mixed", bench="ledger-h1", arm="restart")
    cells = [f"`toy-mixed`: {points(toy)} where one digit is omitted"]
    for condition, words in (("needed-observed", "a needed number is omitted"), ("complete-derived", "nothing is")):
        cells.append(f"`smollm2-open`: {points(story_row('smollm2-open', condition, 'restart'))} where {words}")
    return "; ".join(cells)


def unfamiliar() -> str:
    """Effect of `restart-bare` where the text suffices, before and after training on such caches."""
    cells = []
    for model, words in (
        ("smollm2-open", "trained on open caches"),
        ("open-further", "the same and more steps of it"),
        ("smollm2-mixed", "the same and as many steps with sealed caches among them"),
    ):
        cells.append(f"{points(story_row(model, 'complete-derived', 'restart-bare'))} ({words})")
    return "; ".join(cells)


def donors() -> str:
    """Share of answers that follow a swapped-in block."""
    toy = one_row(read("ledger_pair"), model="toy-mixed", bench="ledger-h1", arm="swap")
    needed, null = (story_row("smollm2-open", name, "swap") for name in ("needed-observed", "unneeded-observed"))
    return (
        f"`toy-mixed`: {percent(toy['follows_donor'])} %; `smollm2-open`: {percent(needed['follows_donor'])} %, and "
        f"{percent(null['follows_donor'])} % where nothing needs the value"
    )


def bits() -> str:
    """Ghost bits of the answer by number of omitted digits."""
    results = read("toy_bits")
    part = results[(results["model"] == "toy-mixed") & (results["arm"] == "restart") & (results["group"] == "answer")]
    by_level = part.set_index("source")["bits_per_trace"]
    values = ", ".join(number(by_level[f"ledger-h{level}"]) for level in (1, 2, 3))
    most = ", ".join(number(level * 3.321928) for level in (1, 2, 3))
    return f"{values} bits for 1, 2 and 3 omitted digits, of {most} that they hold"


def hops() -> str:
    """Accuracy of a probe of the paper's toy, and what it reads beyond the text."""
    results = read("toy_leakage")
    alone = select_rows(results, given="nothing", **MODELS["all tokens"]).set_index("hop")["accuracy"]
    beyond = select_rows(results, given="text", **MODELS["all tokens"]).set_index("hop")
    near, far = (interval(beyond.loc[hop, [f"bits{end}" for end in ENDS]], 4) for hop in (0, 1))
    return (
        f"{percent(alone[1])} % one block later; beyond what the text determines {far} bits there, and {near} bits in "
        "the block's own memento"
    )


def untrained() -> str:
    """What a probe reads beyond the text before any training."""
    results = read("toy_leakage")
    beyond = select_rows(results, given="text", **MODELS["untrained"]).set_index("hop")
    near, far = (interval(beyond.loc[hop, [f"bits{end}" for end in ENDS]], 4) for hop in (0, 1))
    return f"untrained: {near} bits in the block's own memento, {far} one block later"


def passcode() -> str:
    """Accuracy of probes of planted digits in random weights, over open and sealed caches."""
    results = read("passcode")
    part = results[(results["model"] == "random-qwen3") & (results["probe"] == "linear") & (results["layer"] == "3")]
    part = part.set_index(["condition", "hop"])
    near, far, sealed = (points(part.loc[key], "accuracy") for key in (("open", 0), ("open", 1), ("sealed", 0)))
    return f"{near} % at hop 0; {far} % at hop 1; sealed {sealed} %"


def attributed() -> str:
    """Unfamiliarity and content of the drop of two toys, in the words of the decomposition."""
    results, cells = read("decomposition"), []
    for model in ("toy-open", "toy-mixed"):
        unfamiliar = one_row(results, model=model, bench="ledger-h0", component="unfamiliarity")
        content = one_row(results, model=model, bench="ledger-h1", component="content")
        cells.append(f"`{model}`: unfamiliarity {cell(unfamiliar)}, content {cell(content)}")
    return "; ".join(cells)


def reopened() -> str:
    """Accuracy before and after reinforcement learning over the open cache, where one digit is omitted."""
    results = read("rl_channel")
    rows = results[(results["run"] == "free") & (results["bench"] == "ledger-h1")]
    last = rows[rows["step"] == rows["step"].max()].sort_values("seed")
    before = points(one_row(rows, step=0, seed=0), "accuracy")
    after = " and ".join(points(row, "accuracy") for row in last.to_dict("records"))
    return f"{before} % right before, {after} % after {last['step'].iloc[0]} steps; the text alone permits 10 %"


def power() -> str:
    """Half-width of the interval of the paper's comparison."""
    results = read("paper_power")
    same = (results["effect"] == 0.153) & (results["repetitions"] == 64) & (results["concentration"] == 1.0)
    half = {}
    for name, repetitions, way in (("as printed", 8, "unpaired"), ("paired", 64, "paired")):
        part = results[same & (results["arm_repetitions"] == repetitions) & (results["way"] == way)]
        half[name] = 100 * part["half_width"].iloc[0]
    return "; ".join(f"±{number(value, 1)} points {name}" for name, value in half.items())


def false_alarms() -> str:
    """Verdicts of audits without a leak, and with a large one."""
    results = read("audit_calibration")
    none, large = (results[results["leak"] == leak] for leak in (results["leak"].min(), results["leak"].max()))
    alarms, found = ((part["verdict"] == "leak").sum() for part in (none, large))
    size = f"{results['leak'].max():g} bits"
    return f"verdict `leak`: {alarms} of {len(none)} audits without one, {found} of {len(large)} with {size}"


def noise() -> str:
    """What noise leaves, and what it costs."""
    row = read("defences").set_index("defence").loc["noise:0.3"]
    left = interval(row[f"leak{end}"] for end in ENDS)
    lost = interval((100 * row[f"lost{end}"] for end in ENDS), 0)
    return f"{left} bits remain, {lost} points are lost; the audit's verdict: {row['verdict']}"


def stock() -> str:
    """Bits of a number that left the cache of a stock model under the law with most of them."""
    results = read("stock_probes")
    results = results[(results["probe"] == "linear") & (results["target"] == "digit-*") & (results["hop"] >= 0)]
    best = results[(results["condition"] == "open") & results["significant"]].nlargest(1, "bits").iloc[0]
    bits_read = interval((3 * best[f"bits{end}"] for end in ENDS), 2)
    return f"{bits_read} bits of a number of three digits under `{best['law']}`, at the layer with most"


ONE = "one training of each model"
TWO_COMMANDS = "`python experiments/ledger_pair.py`; `python experiments/story_channel.py`"
CLAIMS = (
    Claim(
        "Closing the ghost channel costs accuracy where the retained text omits what is needed",
        "-15.3 points (Qwen3-8B, AIME24, section 6.2.1)",
        closing,
        "bundled toys, SmolLM2-135M",
        TWO_COMMANDS,
        f"{ONE}; generated problems; what a large model's own mementos omit",
    ),
    Claim(
        "With nothing missing, a restart without delimiters can cost as much as in the paper, and after further "
        "training with such caches nothing that can be seen",
        "-15.3 points in all (Qwen3-8B, AIME24)",
        unfamiliar,
        "SmolLM2-135M",
        "`python experiments/story_channel.py --model FOLDER --name NAME`",
        f"{ONE}; whether this is so in the paper's model; training on both from the start failed (`mixed-at-once`)",
    ),
    Claim(
        "Where the text omits a needed value, answers follow the keys and values of the erased block",
        "",
        donors,
        "`toy-mixed`, SmolLM2-135M",
        TWO_COMMANDS,
        ONE,
    ),
    Claim(
        "The channel carries what the omitted digits hold",
        "",
        bits,
        "`toy-mixed`",
        "`python experiments/toy_channel.py`",
        f"{ONE}; natural text",
    ),
    Claim(
        "A drop under `restart` can be large with nothing missing (`toy-open`), or content alone (`toy-mixed`)",
        "",
        attributed,
        "bundled toys",
        "`python experiments/decomposition.py`",
        f"{ONE}; the bundled language models",
    ),
    Claim(
        "A probe's accuracy past the block's own memento can come from the text alone",
        f"{100 * PAPER_HOPS[1]:.1f} % one block later (toy, appendix A.4.2)",
        hops,
        "the paper's toy, one training with loss on all tokens",
        "`python -m experiments.toy_leakage`",
        "fewer samples than the paper; linear probes of the last layer; a second training, with loss on mementos only, "
        "shows a little more (figure in docs/probe.md)",
    ),
    Claim(
        "In the paper's toy, random weights leave more of an erased block than trained ones",
        "17 to 19 % all along training (toy, appendix A.4.2)",
        untrained,
        "the paper's toy, before training",
        "`python -m experiments.toy_leakage`",
        "whether a model uses what a probe can read",
    ),
    Claim(
        "Planted digits can be read from mementos even in random weights",
        "64.9 % at hop 0, 26.5 % at hop 1 (Qwen3-8B, trained, last layer, section 6.2.2)",
        passcode,
        "Qwen3 architecture, random weights, 4 layers",
        "`python -m experiments.passcode`",
        "anything about trained weights: none has been published",
    ),
    Claim(
        "A few steps of reinforcement learning did not reopen a channel that training on sealed caches had closed",
        "left open",
        reopened,
        "`toy-open` after a sealed fine-tune, two runs",
        "`python -m experiments.rl_channel`",
        "longer training; a model that uses its channel a little more; a language model",
    ),
    Claim(
        "As printed, the paper's comparison has a wide interval, and a paired one of 64 repetitions would be narrow",
        "-15.3 points, 64 and 8 repetitions of 30 problems",
        power,
        "simulation from the paper's figures (a + b = 1)",
        "`python experiments/paper_power.py`",
        "the paper's own samples, which are not published",
    ),
    Claim(
        "In simulated states the audit raised no false alarm, and missed no leak of the largest size",
        "",
        false_alarms,
        "random states with a planted leak",
        "`python experiments/audit_calibration.py`",
        "leaks that no probe of the audit can read",
    ),
    Claim(
        "Noise on retained keys and values was the cheapest partial defence",
        "",
        noise,
        "`toy-open`",
        "`python experiments/defences.py`",
        "one model; no bound on what a better attack reads",
    ),
    Claim(
        "A stock model that was never trained to erase keeps some of what left its cache",
        "",
        stock,
        "SmolLM2-135M-Instruct",
        "`python experiments/stock_model.py`",
        "one model; whether it uses it",
    ),
)


def claims() -> str:
    """Return every claim with the paper's figure, ours, the model, the command and what is left open."""
    header = ["claim", "the paper", "measured here, with 95 % intervals in brackets", "model", "command", "not shown"]
    rows = [[row.claim, row.paper, row.measure(), row.model, row.command, row.open] for row in CLAIMS]
    return markdown_table(header, rows)
