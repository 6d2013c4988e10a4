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
# # Ablation: when is a drop under `restart` missing information?
#
# If a model answers worse once its mementos are computed again without their blocks, two things may be the cause:
# information that the text of the mementos lacks, or a kind of cache that the model was never trained on. You learn how
# to tell them apart: with a benchmark whose mementos omit nothing, with a model that was trained on both kinds of
# cache, and with the arm `swap`.

# %% [markdown]
# ## Two models, with and without a missing digit
#
# `toy-open` was trained with memento attention alone, `toy-mixed` on sealed caches as well. In `ledger-h0` the mementos
# omit nothing, in `ledger-h1` they omit one digit of three. The arms are `placebo` (mementos computed again with their
# blocks visible, a control for numerical noise), `restart` (computed again without them) and `swap` (one memento
# computed from another block under the same text). The reference `memento` always runs.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import ghosttrace as gt

MODELS, ARMS = ("toy-open", "toy-mixed"), ("placebo", "restart", "swap")
runs = {name: gt.ablate(name, bench="ledger-h0,ledger-h1", arms=ARMS, limit=30, margin=15) for name in MODELS}
print({name: run.valid for name, run in runs.items()})

# %% [markdown]
# The table has the accuracy of each arm. For `swap` it also has the share of answers that follow the other block, the
# *donor*.

# %%
results = pd.concat([run.results.assign(model=name) for name, run in runs.items()], ignore_index=True)
table = results.pivot(index=["model", "arm"], columns="bench", values=["accuracy", "follows_donor"])
table.reindex([(model, arm) for model in MODELS for arm in ("memento", *ARMS)]).round(2)

# %% [markdown]
# `toy-mixed` loses accuracy under `restart` only where a digit is missing. `toy-open` loses it in both cases, so its
# drop does not measure what is missing. `swap` needs no such comparison: the text is the same, so an answer that
# follows the donor has read it from keys and values. In `ledger-h0` the donor's answer is the same, and no answer can
# follow it.

# %%
STYLES = {"memento": "", "placebo": "..", "restart": "//", "swap": "xx"}


def draw(results: pd.DataFrame, title: str) -> None:
    """Draw accuracy by number of hidden digits with 95 % intervals; for swap, the answers that follow the donor."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.9), sharey=True, layout="constrained")
    for axis, model in zip(axes, MODELS, strict=True):
        for number, (arm, hatch) in enumerate(STYLES.items()):
            rows = results[(results["model"] == model) & (results["arm"] == arm)].sort_values("bench")
            value = rows["follows_donor"] if arm == "swap" else rows["accuracy"]
            at = [level + 0.2 * (number - 1.5) for level in range(len(rows))]
            label = "swap: answers that follow the donor" if arm == "swap" else arm
            axis.bar(at, value, 0.18, color=gt.ARMS[arm].colour, hatch=hatch, edgecolor="white", label=label)
            if arm != "swap":
                spread = [value - rows["accuracy_low"], rows["accuracy_high"] - value]
                axis.errorbar(at, value, spread, color="black", fmt="none", capsize=2, linewidth=1)
        axis.set(title=model, xlabel="hidden digits", xticks=range(len(rows)), ylim=(0, 1.05))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("share of answers")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)


draw(results, f"{results['n_problems'].max()} problems for each number of hidden digits")

# %% [markdown]
# ## Intervals and equivalence
#
# An effect is the accuracy of an arm minus that of `memento`, paired by problem. That an effect is not significant does
# not show that there is none: `margin=15`, set before the run, tests whether an arm is *equivalent* to `memento` within
# that many points. `effect_low` and `effect_high` bound the 95 % interval of one arm, the columns `_joint` hold for all
# arms of a benchmark together.

# %%
columns = ["model", "bench", "arm", "effect", "effect_low", "effect_high", "effect_low_joint", "effect_high_joint"]
effects = results.loc[results["arm"] != "memento", [*columns, "significant", "equivalent"]]
effects.round(2)

# %% [markdown]
# `detectable` is the smallest effect that a run of this size finds in four of five repetitions, if all problems share
# it. Smaller effects need more problems (`limit=`); more repetitions of the same problems cannot replace them.

# %%
print("detectable effect:", f"{100 * results['detectable'].max():.0f} points")

# %% [markdown]
# ## Single problems
#
# `per_problem` counts the correct answers of each problem and arm. Problems that `restart` still solves are cases in
# which the guess of the missing digit was right.

# %%
problems = runs["toy-mixed"].per_problem().loc["ledger-h1"]
print("solved under restart:", int(problems["restart"].sum()), "of", len(problems))
problems.head()

# %% [markdown]
# ## A part of the cache
#
# `gt.Part` restricts `restart` to layers, heads, keys or values. The question is which part must be sealed for the
# answer to be lost. Only the last row seals everything.

# %%
PARTS = {
    "keys of all layers": gt.Part(kv=("k",)),
    "values of layer 0": gt.Part(layers=(0,), kv=("v",)),
    "values of layer 3": gt.Part(layers=(3,), kv=("v",)),
    "everything": gt.Part(),
}
parts = {
    name: gt.ablate("toy-mixed", bench="ledger-h1", arms="restart", part=part, limit=20).results.iloc[-1]
    for name, part in PARTS.items()
}
pd.DataFrame({name: row[["accuracy", "effect", "effect_low", "effect_high"]] for name, row in parts.items()}).T.astype(
    float
).round(2)

# %% [markdown]
# ## More problems, and a language model
#
# The recorded run has more problems and all numbers of hidden digits. `python experiments/ledger_pair.py` repeats it.

# %%
RESULTS = Path("../experiments/results")
recorded = pd.read_parquet(RESULTS / "ledger_pair.parquet")
draw(recorded, f"{recorded['n_problems'].max()} problems for each number of hidden digits")

# %% [markdown]
# `smollm2-open` is SmolLM2-135M fine-tuned once with memento attention on word problems. It needs a download (`make
# lm`) and minutes to run, so its results are read here; `python experiments/story_channel.py` repeats them. In `needed`
# conditions the mementos omit a number that a later step needs, in the others the retained text suffices.
# `restart-bare` also leaves out the delimiters that this model keeps, and `restart-renumbered` closes up the positions.

# %%
checkpoints = pd.read_parquet(RESULTS / "story_channel.parquet")
story = checkpoints[checkpoints["model"] == "smollm2-open"]
story.pivot(index="arm", columns="bench", values="effect").loc[
    ["placebo", "restart", "restart-bare", "restart-renumbered", "swap"]
].round(2)

# %% [markdown]
# Here `restart` costs little where the text suffices, and nearly everything where a number is missing. The other two
# ways to restart also cost accuracy where nothing is missing. `smollm2-mixed` is the same model after a short further
# training in which some traces had such caches. The next table has both where the text suffices.

# %%
complete = checkpoints[checkpoints["bench"] == "story-complete-derived"]
complete = complete[complete["model"].isin(["smollm2-open", "smollm2-mixed"])]
complete = complete[complete["arm"].str.startswith("restart")]
complete[["model", "arm", "effect", "effect_low", "effect_high"]].round(3)

# %% [markdown]
# What a cache costs where nothing is missing depends on whether the model has met that kind of cache. So *how* a cache
# is sealed, and what the model was trained on, belong to every such number. The last table has the answers under
# `swap`.

# %%
draws = story[story["arm"] == "swap"].set_index("bench")["follows_donor"]
print("share of answers that follow the donor under swap:")
draws.round(2)

# %% [markdown]
# ## What this does not show
#
# - Each model was trained once. Another training of the same recipe can store and use the channel differently.
# - For `toy-open`, the drop does not say how much of it is missing information: sealing alone takes its accuracy to
#   about zero, and nothing is left for a missing digit to take. `swap` says that the channel is used, not how much of
#   the drop it explains.
# - A low accuracy with one part sealed says that this part is needed on these problems. It does not say that other
#   parts hold nothing. [04-patching](04-patching.ipynb) asks both questions.
# - The language model is small, its task is generated, and its mementos omit a number because a harness makes them.
