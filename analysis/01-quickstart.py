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
# # Quickstart: what does a model keep of text that left its KV cache?
#
# A memento model writes its reasoning in blocks, summarises each block in a short *memento*, and erases the block from
# its KV cache. The keys and values of the memento were computed while the block was visible, so they may still hold
# something of it. This notebook runs a small bundled model with these keys and values as they are (`memento`), computed
# again without the block (`restart`), and computed from another block (`swap`). You learn how to start a run, how to
# read its table and figures, and how to save and open it.

# %% [markdown]
# ## A model and a problem
#
# `gt.load` takes a bundled name, a folder or a hub id. `toy-mixed` is a bundled model with four layers. The policy says
# when a block leaves the cache, and is part of what the model was trained with.

# %%
import math
import tempfile

import pandas as pd

import ghosttrace as gt

model = gt.load("toy-mixed")
model.policy

# %% [markdown]
# `ledger-h1` is a generated benchmark. A state of three digits changes inside the blocks, and each memento hides the
# last digit of the state (`*`). The answer is the final state, so the retained text alone does not determine its last
# digit. `load_bench` returns a list, because a name such as `ledger` stands for several benchmarks.

# %%
(bench,) = gt.load_bench("ledger-h1", limit=1)
problem = bench.problems[0]
print("prompt:  ", problem.prompt)
print("response:", bench.response(problem))
print("answer:  ", problem.answer)

# %% [markdown]
# ## Which token sees which
#
# `gt.expiry` computes, for every token, the index of the first later token that no longer sees it. Everything in
# GhostTrace is derived from this vector. The table has the tokens of the first block and its memento: the block leaves
# the cache as soon as the memento is complete, and the memento stays (`never`).

# %%
tokens = model.prompt_ids(problem.prompt) + model.tokenizer(bench.response(problem), add_special_tokens=False).input_ids
expiry = gt.expiry(tokens, model.law)
block = gt.find_blocks(tokens, model.markup)[0]
rows = [
    (index, model.tokenizer.decode(tokens[index]), "never" if expiry[index] == gt.NEVER else str(expiry[index]))
    for index in [block.start, block.start + 1, block.end, *range(block.end + 1, block.memento_end + 1)]
]
pd.DataFrame(rows, columns=["token index", "token", "erased for tokens from"])

# %% [markdown]
# ## An ablation
#
# `gt.ablate` runs the same problems with the same random draws under several *arms*. An arm changes what becomes of the
# retained keys and values, and nothing else; under `full` nothing is erased. `accuracy` is the share of correct
# answers, `effect` the difference from `memento`, paired by problem, with its 95 % interval. `follows_donor` is the
# share of answers that follow the other block of `swap`.

# %%
run = gt.ablate(model, bench="ledger-h1", arms=["full", "restart", "swap"], limit=40)
columns = ["arm", "n_problems", "accuracy", "effect", "effect_low", "effect_high", "follows_donor"]
run.results[columns].round(2)

# %% [markdown]
# The next cell states the result in words. Where nothing else changed, answers that follow the other block can only
# have read it from the memento's keys and values, because the text of the memento is the same.

# %%
arms = run.results.set_index("arm")
print(f"With the keys and values as they are, {arms.accuracy['memento']:.0%} of the answers are correct.")
print(f"With mementos computed again without the blocks, {arms.accuracy['restart']:.0%} are.")
print(f"No model that reads the retained text alone can expect more than {bench.ceiling:.0%}.")
print(f"Under swap, {arms.follows_donor['swap']:.0%} of the answers are those of the other block.")

# %% [markdown]
# A run says itself whether its controls passed. If one failed, `valid` is false and the results support no conclusion.

# %%
print("valid:", run.valid)
print("failed controls:", list(run.failures))

# %% [markdown]
# `figure` draws a figure of the run; `run.figures()` has their names. The dashed line is the highest accuracy that can
# be expected on a sealed cache, that is, one computed from the retained text alone.

# %%
run.figure("accuracy")

# %% [markdown]
# ## Single responses
#
# `run.samples` is a pandas table with one row per problem and arm. All responses below begin with the same prompt and
# have the same observations inside their blocks.

# %%
first = run.samples[run.samples["problem"] == run.samples["problem"].iloc[0]]
for sample in first.itertuples():
    print(f"{sample.arm:8} answer {sample.extracted}, correct: {sample.correct}, correct answer {sample.answer}")

# %% [markdown]
# The second figure shows how many keys the cache holds at each step of one response. It falls whenever a block leaves,
# except under `full`. Arms that hold the same number have one line.

# %%
run.figure("sawtooth")

# %% [markdown]
# ## Save, open, report
#
# With `out=`, a run is written to a folder while it proceeds, and an interrupted run can be resumed. `gt.open_run`
# returns the same result from the folder, and `report()` writes a self-contained HTML page there.

# %%
with tempfile.TemporaryDirectory() as folder:
    saved = gt.ablate(model, bench="ledger-h1", arms="restart", limit=5, out=f"{folder}/run")
    print("equal to the saved run:", gt.open_run(f"{folder}/run") == saved)
    print("report:", saved.report().name)

# %% [markdown]
# The other instruments are called in the same way. `gt.bits` needs no generation: it compares, on a fixed text, the
# log-probabilities of later tokens with the open and the sealed cache. The control `placebo` computes mementos again
# with their blocks visible, and must change nothing.

# %%
bits = gt.bits(model, bench="ledger-h1", limit=10)
answers = bits.results[(bits.results["by"] == "kind") & (bits.results["group"] == "answer")]
answers[["source", "arm", "n_traces", "bits_per_trace"]].round(2)

# %% [markdown]
# Sealing costs the answer about as many bits as a hidden digit has, and the control costs none. The next cell computes
# both.

# %%
cost = answers.set_index("arm")["bits_per_trace"]
print(f"bits of the answer lost: restart {cost['restart']:.2f}, placebo {cost['placebo']:.2f}")
print(f"entropy of one hidden digit: {math.log2(10):.2f}")

# %% [markdown]
# ## What this does not show
#
# - `toy-mixed` was trained once, for this purpose, on a task whose mementos must leave something out. It shows that a
#   model can use the channel, not that a given large model does.
# - A drop under `restart` alone is not a measure of missing information: a sealed cache can also be unfamiliar to a
#   model. [02-ablation](02-ablation.ipynb) separates the two.
# - Few problems were run, so the intervals are wide. `python experiments/ledger_pair.py` repeats this with more.
