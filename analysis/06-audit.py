# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Audit: who can recover what from the retained cache?
#
# An audit asks whether a secret of an erased block can be recovered, by whom, and with which verdict a release pipeline
# should stop. You learn how to run one, why its verdict can be "not enough data", and what defences cost.

# %% [markdown]
# ## A small audit
#
# The secrets are the three digits that the mementos of `ledger-h3` omit (`targets=["hidden-*"]`); they left the cache
# with a block. The attack `attribute` trains probes on keys and values; other attacks guess among candidates, prompt
# the model, or recompute caches. This audit reads one layer and has few traces, which is enough to find a large leak.

# %%
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import pandas as pd

import ghosttrace as gt

SMALL = {"bench": "ledger-h3", "targets": ["hidden-*"], "samples": 400, "layers": [3], "hops": [0], "kv": ["v"]}
SMALL |= {"pool": 3, "mlp": False}
audit = gt.audit("toy-open", attacks=["attribute"], utility_limit=10, **SMALL)
print(*map(fill, audit.findings), sep="\n\n")
print("\nexit code:", audit.exit_code)

# %% [markdown]
# Each row of `results` is a finding. `open` is the cache of the model, `sealed` the control in which nothing can be
# found. `state` is the decision on the rows that decide.

# %%
columns = ["attack", "secret", "condition", "unit", "estimate", "low", "high", "baseline", "state"]
rows = audit.results[audit.results["condition"].isin(["open", "sealed"])]
rows[columns].round(2)

# %% [markdown]
# `figure("leak")` shows the bits by attack, with the limit as a line.

# %%
audit.figure("leak")

# %% [markdown]
# ## With a defence
#
# `defence=` audits what a deployment might do to the cache: every attacker is trained again against the defence, and
# its cost in accuracy is measured on the same problems. `restart` computes the retained tokens again without the
# blocks. That nothing was found with few traces does not show that there is nothing, and the verdict says so.

# %%
defended = gt.audit("toy-open", attacks=["attribute"], defence="restart", utility_limit=10, **SMALL)
print(*map(fill, defended.findings), sep="\n\n")
print("\nexit code:", defended.exit_code)

# %% [markdown]
# ## What defences cost
#
# The recorded audits have more traces and nonlinear probes; `python experiments/defences.py` repeats them. The secret
# are the notes, which no answer needs. Below and to the left is better: few bits of the notes remain, and little
# accuracy is lost. Horizontal and vertical lines are 95 % intervals.

# %%
RESULTS = Path("../experiments/results")
defences = pd.read_parquet(RESULTS / "defences.parquet")
KINDS = ("none", "restart", "sealed", "partial", "scrub", "leace", "random", "noise")
MARKS = dict(zip(KINDS, "*ssDv^Po", strict=True))
OFFSETS = {"restart": 22, "sealed training": 13, "scrub:2,3": 13, "partial:1": 9}
OFFSETS |= {"noise:0.3": -12, "none": -12}
figure, axis = plt.subplots(figsize=(7.5, 4), layout="constrained")
for row in defences.itertuples():
    kind = next(name for name in KINDS if row.defence.startswith(name))
    spread = {"xerr": [[row.lost - row.lost_low], [row.lost_high - row.lost]]}
    spread["yerr"] = [[max(0, row.leak - row.leak_low)], [row.leak_high - row.leak]]
    colour = plt.cm.viridis(KINDS.index(kind) / len(KINDS))
    axis.errorbar(row.lost, row.leak, **spread, fmt=MARKS[kind], color=colour, ecolor="#bbbbbb", markersize=7)
    offset = (7, OFFSETS.get(row.defence, 4))
    axis.annotate(row.defence, (row.lost, row.leak), offset, textcoords="offset points", fontsize=8)
axis.set_yscale("symlog", linthresh=0.1)
axis.set_yticks([0, 0.1, 1, 10], ["0", "0.1", "1", "10"])
axis.set(xlabel="share of correct answers lost", ylabel="bits of the notes that remain", xlim=(-0.08, 1.25))
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# The table has the verdicts. A defence that leaves few bits is not yet shown to be safe: the number of traces decides
# what an audit can rule out.

# %%
defences[["defence", "leak", "leak_low", "leak_high", "lost", "cost", "verdict"]].round(2)

# %% [markdown]
# ## How often the verdict is wrong
#
# To know what an audit can miss, leaks of known size were written into sealed caches, with fresh secrets each time.
# `python experiments/audit_calibration.py` repeats these audits. Each column is a size of the leak in bits, each cell
# the number of audits with this verdict.

# %%
calibration = pd.read_parquet(RESULTS / "audit_calibration.parquet")
pd.crosstab(calibration["verdict"], calibration["leak"])

# %% [markdown]
# Some codes are harder to see than others of the same size. `python experiments/audit_plants.py` plants three digits in
# other forms; these are the forms that the audit did not call a leak.

# %%
plants = pd.read_parquet(RESULTS / "audit_plants.parquet")
plants.loc[plants["verdict"] != "leak", ["plant", "verdict", "bits", "bits_low", "bits_high", "exposed"]].round(3)

# %% [markdown]
# ## A stock model that drops tool results
#
# An agent that clears old tool results erases text as well. This audit of SmolLM2-135M-Instruct needs `make lm` and
# many minutes, so its results are read here; `python experiments/stock_audit.py` repeats it.

# %%
stock = pd.read_parquet(RESULTS / "stock_audit.parquet")
stock = stock[
    (stock["attack"] == "attribute") & (stock["unit"] == "bits") & stock["condition"].isin(["open", "sealed"])
]
stock[["defence", "condition", "estimate", "low", "high", "unknown_bits", "verdict"]].round(2)

# %% [markdown]
# ## What this does not show
#
# - The first two audits are small on purpose. A small audit can find a leak; it cannot pass a model.
# - An audit finds what its attackers can read. Secrets that are spread over several tokens, or that stand in a small
#   share of the traces, can be missed; every verdict names the sizes below which it is blind.
# - Noise comes with no privacy bound. That it was the cheapest partial defence holds for one training of one toy.
# - Where the answers depend on erased digits, closing the channel costs these answers. Where the retained text suffices
#   and the model was trained on sealed caches, it need not
#   ([07-training-and-decomposition](07-training-and-decomposition.ipynb)).
