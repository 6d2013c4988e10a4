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
# # Patching: which keys and values does the answer depend on?
#
# A probe shows what a state contains; patching shows what the model uses. For each layer and token of a memento, and
# for keys and values separately, `gt.patch` replaces this part alone by its version under another block with the same
# memento text, and reads how the text that follows changes. You learn which parts are *sufficient* (swapping them alone
# has the effect of swapping everything) and which are *necessary* (swapping everything else has not).

# %% [markdown]
# ## The last block
#
# After the last block (`block=-1`) the model writes the answer. `ledger-h1` hides one digit, so the answer under the
# other block differs in one digit. The findings are the sentences that the command line prints.

# %%
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import pandas as pd

import ghosttrace as gt

run = gt.patch("toy-mixed", bench="ledger-h1", kind="swap", block=-1, limit=12)
print("valid:", run.valid)
print(*map(fill, run.findings), sep="\n\n")

# %% [markdown]
# The figure has one cell for each layer and token. A cell is the decrease of log2 p(the trace's own answer), in bits,
# if this part alone is swapped.

# %%
run.figure("patch-ledger-h1-block_-1")

# %% [markdown]
# The table has the effect by layer, of keys and of values. `recovered` is the share of the effect of swapping
# everything, `follows_donor` the share of traces whose answer becomes that of the other block. The prompt is a control:
# swapping it must have no effect.

# %%
columns = ["carrier", "layer", "kv", "bits", "bits_low", "bits_high", "recovered", "follows_donor"]
whole = run.results[(run.results["offset"] == "all") & (run.results["kv"] != "kv")]
by_layer = whole[(whole["carrier"] == "memento") & (whole["layer"] != "all")]
pd.concat([by_layer, run.results[run.results["carrier"] == "prompt"]])[columns].round(2)

# %% [markdown]
# ## Sets of sites
#
# On half of the traces, `patch` searches a set of sites that together have most of the effect of swapping everything,
# and from which no site can be dropped. On the other half it measures the set alone, and everything except the set
# (`rest`).

# %%
sets = pd.DataFrame(run.site_sets)
sets["sites"] = [", ".join(f"layer {s['layer']} {s['kv']} {s['token']}" for s in sites) for sites in sets["sites"]]
sets[["source", "block", "sites", "n_traces", "recovered", "flipped", "rest_recovered", "rest_flipped"]].round(2)

# %% [markdown]
# ## Earlier blocks, and the other model
#
# The text after an earlier block is the next block and its memento, so what the model reads there can lie elsewhere.
# The recorded run has all blocks of both toys, and more traces; `python experiments/toy_channel.py` repeats it. The
# figure has the share of the effect by layer (keys and values of the layer together).

# %%
RESULTS = Path("../experiments/results")
recorded = pd.read_parquet(RESULTS / "toy_patching.parquet")
layers = recorded[(recorded["carrier"] == "everything") & (recorded["kv"] == "kv") & (recorded["layer"] != "all")]
figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
for axis, model in zip(axes, ("toy-open", "toy-mixed"), strict=True):
    for number, (block, style) in enumerate({-1: "o-", -2: "s--", -3: "^-.", -4: "x:"}.items()):
        rows = layers[(layers["model"] == model) & (layers["source"] == "ledger-h1") & (layers["block"] == block)]
        rows = rows.sort_values("layer")
        colour = plt.cm.viridis(number / 4)
        axis.plot(rows["layer"].astype(int), rows["recovered"], style, color=colour, label=f"block {block}")
    axis.set(title=model, xlabel="layer", xticks=range(4))
    axis.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("share of the whole effect")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
plt.show()

# %% [markdown]
# The recorded sets of sites say which parts are sufficient and necessary. Where `rest_flipped` is about zero,
# everything except the set does not turn an answer into the other block's.

# %%
found = pd.read_parquet(RESULTS / "toy_patching_sets.parquet")
found["sites"] = [", ".join(sorted({f"layer {s['layer']} {s['kv']}" for s in sites})) for sites in found["sites"]]
shown = ["model", "source", "block", "sites", "n_traces", "recovered", "flipped", "rest_recovered", "rest_flipped"]
found.loc[found["source"] == "ledger-h1", shown].round(2)

# %% [markdown]
# For the last block both toys keep the digit in the values of the last layer. For earlier blocks the two differ,
# although they have the same architecture and task. The next cell names the layer with the largest share by model and
# block.

# %%
best = layers[layers["source"] == "ledger-h1"].sort_values("recovered").groupby(["model", "block"])["layer"].last()
best.unstack("block")

# %% [markdown]
# ## What this does not show
#
# - It says where two trained models store a digit, not where models of this kind do: each was trained once, and two
#   trainings of one recipe can differ.
# - Shares of single parts need not add up, because the model combines them nonlinearly. A part without an effect alone
#   can be necessary together with others.
# - A set from the search need not be the smallest one, and other sets may do as well.
# - The first run above has few traces. Its intervals are wide, and the set was measured on half of them.
# - Patching swaps states under a memento text that stays the same. It says nothing of what the text itself carries.
