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
# # The paper's toy: does the channel come from the architecture or from training?
#
# The paper (arXiv 2604.09852, appendix A.4.2) trains a small model to write running sums of random digits, erases each
# block of digits, and reads the digits back from *later* mementos. It concludes that the channel comes from the
# architecture. You learn what the sums that remain in the text already say about these digits, what a probe reads
# beyond that, and how a trained model differs from an untrained one.

# %% [markdown]
# ## What the text says
#
# A block has five random digits, and its memento the sum of all digits so far. The difference of two neighbouring sums
# is the sum of the block's five digits, which makes some digits more likely than others. This cell computes the best
# guess of one digit from that sum, exactly.

# %%
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForCausalLM

import ghosttrace as gt

DIGITS = 5
ways = np.ones(1)  # number of tuples of digits by their sum
for _ in range(DIGITS - 1):
    ways = np.convolve(ways, np.ones(10))
joint = np.zeros((9 * DIGITS + 1, 10))  # number of tuples by sum, and by the value of one digit
for digit in range(10):
    joint[digit : digit + len(ways), digit] = ways
text_accuracy = joint.max(1).sum() / joint.sum()
print(f"accuracy of the best guess of a digit: without the text {1 / 10:.1%}, with the text {text_accuracy:.1%}")

# %% [markdown]
# So an accuracy above chance is no evidence of a channel here. What counts are bits *beyond* this exact posterior.
#
# ## The paper's toy, retrained
#
# The recorded run retrains the toy and probes the last layer of every later memento, with the exact posterior as the
# baseline; `python -m experiments.toy_leakage` repeats it. Hop 0 is the block's own memento, hop 1 the memento one
# block later. The column `paper` has the numbers that the paper reports for the last layer.

# %%
RESULTS = Path("../experiments/results")
recorded = pd.read_parquet(RESULTS / "toy_leakage.parquet")
linear = recorded[(recorded["probe"] == "linear") & (recorded["carrier"] == "memento") & (recorded["layer"] == "3")]
linear = linear[(linear["condition"] == "open") & (linear["recipe"] == "all") & (linear["delimiters"] == "kept")]
linear = linear[linear["step"].isin([0, linear["step"].max()])]
linear = linear.assign(network=np.where(linear["step"] == 0, "untrained", "trained")).sort_values("hop")
accuracy = linear[linear["given"] == "nothing"].pivot(index="hop", columns="network", values="accuracy")
accuracy["paper"] = pd.Series({1: 0.262, 2: 0.214, 7: 0.13})
accuracy["text alone"] = text_accuracy
accuracy.round(3)

# %% [markdown]
# The figure has both measures: accuracy without regard to the text, and bits per digit beyond the text.

# %%
MARKS = {"trained": ("o-", "#1b6e53"), "untrained": ("s--", "#d8a24a")}
figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for axis, given, measure in zip(axes, ("nothing", "text"), ("accuracy", "bits"), strict=True):
    for network, (style, colour) in MARKS.items():
        rows = linear[(linear["given"] == given) & (linear["network"] == network)]
        spread = [rows[measure] - rows[f"{measure}_low"], rows[f"{measure}_high"] - rows[measure]]
        axis.errorbar(rows["hop"], rows[measure], spread, fmt=style, color=colour, markersize=4, label=network)
    axis.set(xlabel="hop", xticks=range(8))
    axis.spines[["top", "right"]].set_visible(False)
axes[0].plot(accuracy.index, accuracy["paper"], "kx", label="paper")
axes[0].axhline(text_accuracy, color="black", linestyle=":", label="text alone")
axes[0].set_ylabel("accuracy of a probe")
axes[1].axhline(0, color="black", linewidth=0.8)
axes[1].set_ylabel("bits per digit beyond the text")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
plt.show()

# %% [markdown]
# The next cell prints the numbers. In this one training, probes of later mementos read no more than the text
# says. Before training, they do.

# %%
beyond = linear[linear["given"] == "text"].set_index(["network", "hop"])
for network in MARKS:
    own, later = beyond.loc[(network, 0)], beyond.loc[network].loc[1:, "bits"]
    print(f"{network}: {own['bits']:.2f} bits in the own memento, {later.min():.3f} to {later.max():.3f} in later ones")

# %% [markdown]
# ## The same question on a bundled toy
#
# `ledger` needs no such correction: given the retained text, its hidden digits and its notes are uniform. Here the
# bundled `toy-open` is probed as it is, and with random weights of the same architecture. `dataclasses.replace` gives
# the checkpoint another model; tokenizer and policy stay.

# %%
trained = gt.load("toy-open")
torch.manual_seed(0)
untrained = replace(trained, name="untrained", model=AutoModelForCausalLM.from_config(trained.model.config).eval())
settings = {"bench": "ledger-h1", "samples": 500, "layers": [3], "hops": [0, 1], "kv": ["v"], "pool": 3, "mlp": False}
probed = {checkpoint.name: gt.probe(checkpoint, **settings) for checkpoint in (trained, untrained)}
print({name: run.valid for name, run in probed.items()})

# %% [markdown]
# The answer needs the digit `hidden-0`, and nobody needs the notes. The table has bits beyond the text in the values of
# the last layer. In the trained toy, the digit that is needed can be read one block later as well; in the untrained
# network, a sweep of this size reads nothing there.

# %%
results = pd.concat([run.results.assign(network=name) for name, run in probed.items()])
results = results[results["headline"] & (results["probe"] == "linear") & results["condition"].isin(["open", "sealed"])]
results.pivot(index=["network", "target"], columns=["condition", "hop"], values="bits").round(2)

# %% [markdown]
# The intervals say how much of this such a small sweep can tell apart from nothing.

# %%
shown = results[results["condition"] == "open"]
shown[["network", "target", "hop", "bits", "bits_low", "bits_high", "significant"]].round(2)

# %% [markdown]
# ## What this does not show
#
# - The paper's toy was retrained once with this recipe, on fewer samples than in the paper; its probes of later
#   mementos are less accurate than the paper's. Another recipe can leave more there.
# - A linear probe that reads nothing does not show that nothing is there. The recorded run has other probes and layers.
# - Random weights of one seed are one untrained network.
# - The toys write what a benchmark needs. Nothing here measures the passcodes that the paper reads from large models;
#   `python -m experiments.passcode` is for a checkpoint of that kind, and none has been published.
