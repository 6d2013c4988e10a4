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
# # Probes: where is erased information stored?
#
# A probe is trained to predict a secret of an erased block from retained keys and values. The question is how many bits
# it reads *beyond the text*: beyond what the text that is still there determines. You learn how to probe a model, how
# to read the controls that come with every probe, and how to train a probe of your own on the same states.

# %% [markdown]
# ## A small sweep
#
# In `ledger-h1`, two kinds of digits leave the cache with a block: `hidden-0`, which the memento omits and the answer
# needs, and five *notes*, which nothing needs. Given the retained text all of them are uniform, so the text is worth no
# bits. `hop` counts blocks: at hop 0 the probe reads the block's own memento, at hop 1 the memento after the next
# block. This sweep reads the values of two layers.

# %%
import re
import tempfile
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

import ghosttrace as gt

run = gt.probe("toy-open", bench="ledger-h1", samples=600, layers=[1, 3], hops=[0, 1], kv=["v"], pool=3, mlp=False)
print(*map(fill, run.findings), sep="\n\n")

# %% [markdown]
# The table has the linear probes of the open cache. `bits` is the cross-entropy that the states save on held-out
# traces, `unknown` the bits that the text leaves. `note-*` is the mean over the five notes. Held-out traces share
# neither a problem nor a secret with the traces that the probe was trained on.

# %%
columns = ["target", "hop", "layer", "bits", "bits_low", "bits_high", "unknown", "accuracy", "chance", "significant"]
headline = run.results[run.results["headline"] & (run.results["probe"] == "linear")]
headline.loc[headline["condition"] == "open", columns].sort_values(["target", "hop", "layer"]).round(2)

# %% [markdown]
# ## Controls
#
# The same probe is trained where it must find nothing: on a sealed cache, on the memento before the secret (`causal`),
# and on shuffled labels. `unerased` reads the secret's own tokens before they are erased, and must find it. If a
# control fails, the run is marked as invalid.

# %%
print("valid:", run.valid)
controls = headline.groupby(["target", "condition"], sort=False)["bits"].max().unstack()
controls[["open", "sealed", "causal", "shuffled", "unerased"]].round(2)

# %% [markdown]
# `figure("layers")` shows bits by layer and hop, in the open and in the sealed cache. A dot marks a cell that is not
# significant.

# %%
run.figure("layers")

# %% [markdown]
# ## More traces, all layers
#
# A probe that learns from few traces reads less than is there. The recorded sweep has more traces, both toys and all
# layers; `python experiments/probe_toys.py` repeats it. The figure has the bits per digit that linear probes read from
# the values.

# %%
RESULTS = Path("../experiments/results")
recorded = pd.read_parquet(RESULTS / "probe_toys.parquet")
linear = recorded[(recorded["probe"] == "linear") & (recorded["kv"] == "v") & (recorded["head"] == "all")]
MARKERS = {("hidden-*", 0): "o-", ("hidden-*", 1): "s--", ("note-*", 0): "^-.", ("note-*", 1): "x:"}
figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
for axis, model in zip(axes, ("toy-open", "toy-mixed"), strict=True):
    for number, ((target, hop), style) in enumerate(MARKERS.items()):
        rows = linear[(linear["model"] == model) & (linear["target"] == target) & (linear["hop"] == hop)]
        rows = rows[rows["condition"] == "open"].sort_values("layer")
        label = f"{target}, hop {hop}"
        axis.plot(rows["layer"].astype(int), rows["bits"], style, color=plt.cm.viridis(number / 4), label=label)
    axis.set(title=model, xlabel="layer", xticks=range(4))
    axis.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("bits per digit beyond the text")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
plt.show()

# %% [markdown]
# The next cell compares the recorded probes with the small sweep above, for the block's own memento and the last layer.
# The recorded ones are of `ledger-h3`, which hides three digits instead of one. The notes could be read although no
# answer ever needed them.

# %%
last = linear[(linear["model"] == "toy-open") & (linear["condition"] == "open") & (linear["layer"] == "3")]
last = last[(last["hop"] == 0) & last["target"].isin(["hidden-*", "note-*"])]
small = headline[(headline["condition"] == "open") & (headline["hop"] == 0) & (headline["layer"] == "3")]
comparison = pd.concat([small.assign(sweep="this notebook"), last.assign(sweep="recorded")])
comparison[["sweep", "target", "n_train", "bits", "unknown"]].round(2)

# %% [markdown]
# ## A probe of your own
#
# `gt.features` returns the states of retained tokens as arrays, with trace, block and token of every row, for an
# analysis that this package does not have. It reads the traces of a run folder or of a file. `arms=[]` runs the
# reference alone.

# %%
with tempfile.TemporaryDirectory() as folder:
    answers = gt.ablate("toy-open", bench="ledger-h1", arms=[], limit=150, out=f"{folder}/run")
    states = gt.features("toy-open", answers.folder, layers=[3], kv="v")
    samples = answers.samples
print("values:", states.values.shape, "(tokens, layers, heads, dimensions)")
states.index[["trace", "block", "carrier", "token_index", "text"]].head()

# %% [markdown]
# The label is the last digit of the state after a block, which is the last character of the block. Of each memento, the
# probe reads the token `*`, which stands for this digit. The last block is left out, because the answer reveals its
# digit. The probe is tested on traces that it was not trained on.

# %%
answered = [(f"{row.problem}/{row.repetition}", row.response) for row in samples.itertuples()]
digits = {trace: re.findall(r"(\d)<\|block_end\|>", response) for trace, response in answered}
rows = ((states.index["text"] == "*") & (states.index["block"] < 3)).to_numpy()
index, inputs = states.index[rows], states.values[rows].reshape(rows.sum(), -1)
labels = np.array([int(digits[trace][block]) for trace, block in zip(index["trace"], index["block"], strict=True)])
test = index["trace"].isin(index["trace"].unique()[100:]).to_numpy()
probe = LogisticRegression(max_iter=2000).fit(inputs[~test], labels[~test])
bits = np.log2(10) - log_loss(labels[test], probe.predict_proba(inputs[test])) / np.log(2)
print(f"{(~test).sum()} rows to learn from, {test.sum()} to test on")
print(f"bits beyond the text: {bits:.1f} of {np.log2(10):.1f}")

# %% [markdown]
# The same probe on a sealed cache (`cache="sealed"`) would be the negative control. `gt.probe` runs it, and the others,
# by itself.

# %% [markdown]
# ## What this does not show
#
# - A probe reads what is there, not what the model uses. [04-patching](04-patching.ipynb) asks what it uses.
# - Bits are lower bounds. A probe with more traces, or of another kind, can read more; a zero is not an absence.
# - One training of each toy: where digits lie differs from training to training.
# - The sweep of this notebook reads two layers, values alone, and two hops. It leaves out nonlinear probes
#   (`mlp=False`).
# - The text baseline is exact because the benchmark is generated. For secrets in real text it is not, and GhostTrace
#   compares with decoders of the text there.
