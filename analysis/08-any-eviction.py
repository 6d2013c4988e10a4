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
# # Any eviction: what is left of tokens that a window, a chunk or an agent dropped?
#
# Sliding windows, chunked reasoning and agents that clear tool results also drop keys and values from the cache, and
# know nothing of mementos. What stays was computed while the rest was visible. You learn how to name such a *law*, how
# to see what it drops and when, and how to measure what is left with a model that was trained without any eviction.

# %% [markdown]
# ## Laws
#
# A law decides which tokens leave the cache, and when. It is named by a string: under `window:12,4`, the oldest four
# tokens after the prompt leave together as soon as more than twelve are held; `sinks:2,6` keeps the first two and the
# latest six; `chunks:10,3` drops all but the last three of every ten. In text without a chat, `prompt=` gives the
# length of the prompt. The figure shows which key each query sees, for thirty tokens. A query is a row, a key a column;
# grey means seen.

# %%
import json
import tempfile
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import ghosttrace as gt

LAWS = ("none", "window:12,4,prompt=3", "sinks:2,6", "chunks:10,3,prompt=3")
tokens = list(range(10, 40))
figure, axes = plt.subplots(1, 4, figsize=(10, 2.9), sharey=True, layout="constrained")
for axis, spec in zip(axes, LAWS, strict=True):
    expiry = gt.expiry(tokens, gt.load("toy-mixed", law=spec).law)
    key, query = np.arange(len(tokens)), np.arange(len(tokens))[:, None]
    axis.imshow((key <= query) & (query < expiry), cmap="Greys", vmin=0, vmax=1.4)
    axis.set(title=spec, xlabel="key")
axes[0].set_ylabel("query")
plt.show()

# %% [markdown]
# `gt.alive` counts the keys that are held at each step. The table has the largest number, and the number after the last
# token.

# %%
held = {spec: gt.alive(gt.expiry(tokens, gt.load("toy-mixed", law=spec).law)) for spec in LAWS}
pd.DataFrame({spec: {"most keys held": keys.max(), "at the end": keys[-1]} for spec, keys in held.items()}).T

# %% [markdown]
# ## The same instruments
#
# Every instrument takes `law=`. `gt.bits` compares the log-probabilities of a fixed text with the cache as it is and
# with a sealed one: `restart` computes, after every erasure, the tokens again that could see what left. `placebo` is
# the control. The model is a bundled toy that was not trained with windows.

# %%
run = gt.bits("toy-mixed", bench="ledger-h1", law="window:48,8", arms=["restart", "restart-renumbered"], limit=10)
print(*map(fill, run.findings), sep="\n\n")

# %% [markdown]
# The table has the bits per token by distance from the last erasure.

# %%
distance = run.results[run.results["by"] == "distance"]
distance.pivot(index="group", columns="arm", values="bits").round(3)

# %% [markdown]
# ## A stock language model
#
# SmolLM2-135M-Instruct was trained under no eviction. It needs a download (`make lm`), and the measurements below take
# hours on one core, so this notebook reads their results; `python experiments/stock_model.py` repeats them. A secret of
# three digits is planted in each session of an agent, and leaves the cache. The figure has the bits that a linear probe
# reads, beyond the text, from the values of tokens that saw the secret: of those that close its turn (`delimiters`), or
# of a group of tokens after it (`after`). Of several groups, each panel has the one with most bits.

# %%
RESULTS = Path("../experiments/results")
stock = pd.read_parquet(RESULTS / "stock_probes.parquet")
values = stock[(stock["kv"] == "v") & (stock["probe"] == "linear") & (stock["target"] == "digit-*")]
values = values[values["head"] == "all"].assign(layer=lambda table: table["layer"].astype(int)).sort_values("layer")
PANELS = {"tools:0": ("delimiters", 0), "window:110,40": ("after", 2), "chunks:40,12": ("after", 0)}
figure, axes = plt.subplots(1, 3, figsize=(9.5, 3), sharey=True, layout="constrained")
for axis, (law, (carrier, hop)) in zip(axes, PANELS.items(), strict=True):
    for condition, style, colour in (("open", "o-", "#1b6e53"), ("sealed", "s--", "#d8a24a")):
        rows = values[(values["law"] == law) & (values["carrier"] == carrier) & (values["hop"] == hop)]
        rows = rows[rows["condition"] == condition]
        spread = [rows["bits"] - rows["bits_low"], rows["bits_high"] - rows["bits"]]
        axis.errorbar(rows["layer"], rows["bits"], spread, fmt=style, color=colour, markersize=4, label=condition)
    axis.set(title=f"{law}\n{carrier}, hop {hop}", xlabel="layer")
    axis.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("bits per digit beyond the text")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
plt.show()

# %% [markdown]
# Tokens that saw the secret hold some of it, and nothing is found over a sealed cache. Whether the model *answers* from
# it is another question. In `agent-erased` the number that is asked for stands only in a tool result that has left; in
# `agent-noted` the assistant has repeated it.

# %%
answers = pd.read_parquet(RESULTS / "stock_accuracy.parquet")
answers[["bench", "law", "arm", "n_problems", "accuracy", "accuracy_low", "accuracy_high"]].round(2)

# %% [markdown]
# ## A law of your own
#
# An engine that drops tokens by a rule of its own can write a log, and `law="log:FILE"` replays it. Each row has the
# tokens of a sequence, and for each token the index of the first query that no longer saw it, or null. Here a made-up
# engine drops the notes of the first block as soon as the block is read.

# %%
model = gt.load("toy-mixed")
(bench,) = gt.load_bench("ledger-h1", limit=10)
with tempfile.TemporaryDirectory() as folder:
    log = Path(folder) / "engine.jsonl"
    with log.open("w") as file:
        for problem in bench.problems:
            response = model.tokenizer(bench.response(problem), add_special_tokens=False).input_ids
            ids = [*model.prompt_ids(problem.prompt), *response]
            block = gt.find_blocks(ids, model.markup)[0]
            notes = range(block.start + 1, block.start + 6)
            evicted_at = [block.end + 1 if index in notes else None for index in range(len(ids))]
            file.write(json.dumps({"token_ids": ids, "evicted_at": evicted_at}) + "\n")
    replayed = gt.bits("toy-mixed", law=f"log:{log}", arms="restart")
print("valid:", replayed.valid)
whole = replayed.results[replayed.results["by"] == "all"]
whole[["arm", "n_traces", "n_tokens", "bits", "bits_low", "bits_high"]].round(3)

# %% [markdown]
# ## What this does not show
#
# - The stock model is one training, in a third party's 4-bit quantisation, on generated agent sessions.
# - A probe that reads a secret does not show that the model uses it: here it did not answer from it.
# - A cost in bits that moves when positions are closed up is no evidence of information. The toy never saw windows or
#   gaps, so the costs above are largely unfamiliarity.
# - Laws that drop tokens by layer or head (H2O, SnapKV) or bring them back (Quest, InfLLM) have no single expiry per
#   token, and are refused.
