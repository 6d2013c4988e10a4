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
# # Training and decomposition: what is a drop under `restart` made of?
#
# A drop under `restart` can be missing content, an unfamiliar kind of cache, missing delimiters or moved positions. You
# learn how `decompose` takes a drop apart, when it says that a part cannot be told, and what a short training on sealed
# caches changes.

# %% [markdown]
# ## Take a drop apart
#
# `decompose=True` runs the arms that the table needs and sets the margin of equivalence aside before the run. It needs
# a benchmark that says what its mementos omit: in `ledger-h0` the retained text suffices, in `ledger-h1` a digit is
# missing.

# %%
import tempfile
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from IPython.utils.capture import capture_output

import ghosttrace as gt

MODELS = ("toy-open", "toy-mixed")
runs = {name: gt.ablate(name, bench="ledger-h0,ledger-h1", limit=16, margin=20, decompose=True) for name in MODELS}
print({name: run.valid for name, run in runs.items()})

# %% [markdown]
# `total` is the drop where a digit is missing, `unfamiliarity` the drop where nothing is, and `content` the difference.
# `position` is what closed-up positions add. Each component has a 95 % interval and a verdict; that a component is
# equivalent to zero rests on its 90 % interval, which is shorter.

# %%
parts = pd.concat([run.decompose().assign(model=name) for name, run in runs.items()], ignore_index=True)
measured = parts[parts["verdict"] != "not measured"]
measured[["model", "bench", "component", "estimate", "low", "high", "verdict"]].round(2)

# %% [markdown]
# Differences of accuracies add up only above zero. If an unfamiliar cache alone takes all accuracy, nothing is left for
# a missing digit to take, and `content` cannot be told. The next cell has the reasons for such verdicts.

# %%
untold = measured[measured["verdict"] == "cannot be told"]
for note in untold["note"].drop_duplicates():
    print("-", note)

# %% [markdown]
# The recorded run has more problems and a third model that was trained on sealed caches alone; `python
# experiments/decomposition.py` repeats it. The estimate of `swap` is the share of answers that follow the donor.

# %%
RESULTS = Path("../experiments/results")
recorded = pd.read_parquet(RESULTS / "decomposition.parquet")
shown = recorded[recorded["component"].isin(["total", "unfamiliarity", "content", "swap"])]
shown = shown[shown["bench"].isin(["ledger-h0", "ledger-h1"])]
shown[["model", "bench", "component", "estimate", "low", "high", "verdict"]].round(3)

# %% [markdown]
# ## Make the sealed cache familiar
#
# A third way to separate content from unfamiliarity is training: a few steps on sealed caches, with data of `ledger-h0`
# alone. This cell writes correct answers of `toy-open` to a run folder, fine-tunes on them with `gt.sft`, and
# measures the trained model. It needs the extra `train`, and is skipped without it.

# %%
trainer = {"config": "../examples/train/toy.yaml", "save_strategy": "no", "report_to": "none"}
if find_spec("trl") is None:
    print("Skipped: install the extra `train` (pip install -e '.[train]') to run the training.")
else:
    with tempfile.TemporaryDirectory() as folder:
        gt.ablate("toy-open", bench="ledger-h0", limit=80, arms=[], out=f"{folder}/answers")
        with capture_output():  # the trainer's log and progress bars
            trained = gt.sft("toy-open", f"{folder}/answers", "sealed", out=f"{folder}/sealed", trainer=trainer)
        after = gt.ablate(trained.load(), bench="ledger-h0", limit=16, arms="restart").results
    before = runs["toy-open"].results.query("bench == 'ledger-h0'").set_index("arm")["accuracy"]["restart"]
    now = after.set_index("arm")["accuracy"]["restart"]
    print("under restart, more than half of the answers are right before training:", before > 0.5)
    print("under restart, more than half of the answers are right after training: ", now > 0.5)

# %% [markdown]
# The recorded run trains for longer and on all levels, and measures the open cache, too; `python -m
# experiments.adapted_drop` repeats it. The dotted lines are the highest accuracies that can be expected on a sealed
# cache.

# %%
adapted = pd.read_parquet(RESULTS / "adapted_drop.parquet")
figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
steps = sorted(adapted["steps"].unique())
for axis, arm in zip(axes, ("restart", "memento"), strict=True):
    for level, style in enumerate(("o-", "s--", "^-.", "x:")):
        rows = adapted[(adapted["arm"] == arm) & (adapted["bench"] == f"ledger-h{level}")].sort_values("steps")
        colour = plt.cm.viridis(level / 4)
        axis.plot(range(len(steps)), rows["accuracy"], style, color=colour, label=f"{level} hidden digits")
        axis.axhline(10.0**-level, color="#bbbbbb", linestyle=":", linewidth=0.8)
    axis.set(title=arm, xlabel="steps of training on sealed caches", xticks=range(len(steps)), xticklabels=steps)
    axis.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("accuracy")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
plt.show()

# %% [markdown]
# Under `restart`, what was unfamiliarity comes back after few steps, and hidden digits stay lost. Under `memento`, the
# trained model no longer uses the open cache: where digits are hidden, it loses them, too. The next cell has the
# numbers of the last step.

# %%
adapted[adapted["steps"] == max(steps)].pivot(index="arm", columns="bench", values="accuracy").round(3)

# %% [markdown]
# ## What training on sealed caches costs
#
# `toy-sealed` was trained on sealed caches from the start. Decoded with `restart`, it is compared here with `toy-open`
# decoded with `memento`; `python experiments/sealed_cost.py` repeats this. `effect` is the difference of accuracies.

# %%
cost = pd.read_parquet(RESULTS / "sealed_cost.parquet")
cost[["bench", "n", "sealed", "open", "effect", "low", "high", "tokens"]].round(3)

# %% [markdown]
# ## What this does not show
#
# - One training of each toy, and one sealed fine-tune. Seeds differ.
# - The trained model no longer uses the open channel. So the drop that is left after a sealed fine-tune is not the
#   content that the *original* model used; that takes a fine-tune of the same steps that is not sealed.
# - The toys erase the delimiters of a block with it, so the component `delimiters` is not measured here.
#   [02-ablation](02-ablation.ipynb) has a language model in which it costs accuracy.
# - That sealed training costs nothing where the text suffices holds for this task, whose mementos then hold everything.
