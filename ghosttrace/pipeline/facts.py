"""Check by code that a memento has no number and no formula that its block lacks."""

import re
from decimal import Decimal

from ghosttrace.pipeline.protected import math_spans

NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,])|\d+(?:\.\d+)?")
NUMBER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)
ORDINAL_WORDS = {"once": 1, "twice": 2, "first": 1, "second": 2, "third": 3, "half": 2, "double": 2, "pair": 2}
INVISIBLE = re.compile(r"\s+|\\left\b|\\right\b|\\q?quad\b|\\[,;:! ]|[{}]")
DELIMITERS = re.compile(r"^(?:\$\$?|\\\(|\\\[)|(?:\$\$?|\\\)|\\\])$")
MAX_NAMED = 5


def missing_facts(memento: str, block: str) -> list[str]:
    """Return what a memento states and its block lacks, as one sentence for numbers and one for formulas.

    Numbers are compared by value, and number words of the block count. Formulas are the marked ones of the memento, and
    must stand in the block but for spaces and braces.
    """
    known = numbers(block)
    words = re.findall(r"[a-z]+", block.lower())
    known |= {Decimal(NUMBER_WORDS.index(word)) for word in words if word in NUMBER_WORDS}
    known |= {Decimal(ORDINAL_WORDS[word]) for word in words if word in ORDINAL_WORDS}
    new_numbers = [f"{number:f}" for number in sorted(numbers(memento) - known)]
    plain_block = INVISIBLE.sub("", block)
    formulas = [memento[start:end] for start, end in math_spans(memento)]
    new_formulas = [formula for formula in formulas if _plain(formula) not in plain_block]
    return [
        f"the block lacks the {kind} {', '.join(found[:MAX_NAMED])}"
        for kind, found in (("numbers", new_numbers), ("formulas", new_formulas))
        if found
    ]


def numbers(text: str) -> set[Decimal]:
    """Return the values of the numbers in a text; commas between thousands do not count."""
    return {Decimal(match.replace(",", "")) for match in NUMBER.findall(text)}


def _plain(formula: str) -> str:
    return INVISIBLE.sub("", DELIMITERS.sub("", formula)).rstrip(".,;")
