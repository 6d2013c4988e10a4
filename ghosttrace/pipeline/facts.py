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
SMALL_FRACTION = re.compile(r"\\[dt]frac(?![A-Za-z])")
THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|\\,)(?=\d{3}(?!\d))")
GAP = re.compile(r"(?<=[\d.])\s+(?=\d)")  # keeps two numbers apart when spaces are removed
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
    plain_block = _plain(block)
    formulas = [memento[start:end] for start, end in math_spans(memento)]
    new_formulas = [formula for formula in formulas if not _holds(plain_block, _plain(DELIMITERS.sub("", formula)))]
    return [
        f"the block lacks the {kind} {', '.join(found[:MAX_NAMED])}"
        for kind, found in (("numbers", new_numbers), ("formulas", new_formulas))
        if found
    ]


def numbers(text: str) -> set[Decimal]:
    """Return the values of the numbers in a text; commas between thousands do not count."""
    return {Decimal(match.replace(",", "")) for match in NUMBER.findall(THOUSANDS.sub(",", text))}


def _plain(text: str) -> str:
    text = SMALL_FRACTION.sub(r"\\frac", THOUSANDS.sub(",", text))
    return INVISIBLE.sub("", GAP.sub("\0", text))


def _holds(block: str, formula: str) -> bool:
    """Return whether a formula stands in a block, and its first and last number do not go on there."""
    formula = formula.rstrip(".,;")
    before = r"(?<!\d)(?<!\d\.)" if formula[:1].isdigit() else ""
    after = r"(?!\.?\d)" if formula[-1:].isdigit() else ""
    return re.search(before + re.escape(formula) + after, block) is not None
