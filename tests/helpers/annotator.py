"""Scripted answers to the three prompts of the pipeline: a fixed function of the request, wrong at times."""

import json
import re
from hashlib import sha256
from typing import Any

SENTENCE = re.compile(r'<sentence n="\d+">(.*?)</sentence>', re.DOTALL)
BLOCK = re.compile(r'<block n="(\d+)" memento_tokens="(\d+)">\n(.*?)\n</block>', re.DOTALL)
WANTED = re.compile(r"Write the mementos of these blocks: (.+)\.")


def digest(text: str) -> int:
    return int(sha256(text.encode()).hexdigest()[:8], 16)


def stage_of(body: dict[str, Any]) -> str:
    system = body["messages"][0]["content"]
    if system.startswith("You write mementos."):
        return "compress"
    return "judge" if system.startswith("You judge a memento") else "score"


def annotate(body: dict[str, Any]) -> str:
    """Answer a request as a good model would: extractive mementos, a judge that wants longer ones at first."""
    user = body["messages"][1]["content"]
    if stage_of(body) == "score":
        sentences = SENTENCE.findall(user)
        return json.dumps({"scores": [digest(sentence) % 4 for sentence in sentences[:-1]]})
    if stage_of(body) == "compress":
        blocks = {int(number): (int(budget), text) for number, budget, text in BLOCK.findall(user)}
        wanted = [int(name.removeprefix("block_")) for name in WANTED.findall(user)[0].split(", ")]
        share = 4 if "<rewrite" in user else 8
        return json.dumps({f"block_{n}": extract(blocks[n][1], blocks[n][0] // share) for n in wanted})
    memento = user.split("<memento>\n")[1].split("\n</memento>")[0]
    full = {"formulas": 3, "values": 2, "methods": 2, "validation": 1, "no_hallucination": 1, "result_first": 1}
    if digest(memento) % 3 == 0:
        return json.dumps(full | {"formulas": 0, "feedback": "the formulas are missing"})
    return json.dumps(full | {"feedback": ""})


def annotate_badly(body: dict[str, Any]) -> str:
    """Answer as `annotate` does, but every third question at first with prose, a wrong length or half a JSON."""
    good = annotate(body)
    if len(body["messages"]) > 2 or digest(json.dumps(body["messages"])) % 3:
        return good
    if stage_of(body) == "score":
        return json.dumps({"scores": [1, 2]})
    return "I think that this block is about an equation." if stage_of(body) == "judge" else good[:-9]


def extract(text: str, words: int) -> str:
    """Return the first words of a text without formulas or numbers that could be cut in two."""
    kept = [word for word in text.split() if re.fullmatch(r"[A-Za-z]+[.,]?", word)]
    return " ".join(kept[: max(3, words)]) or "Nothing."
