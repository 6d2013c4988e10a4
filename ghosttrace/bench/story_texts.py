"""Names, things and wordings of the benchmark `story`, as data. The test split shares none of them with training."""

from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Setting:
    """What the people of a problem have or do.

    Attributes:
        verb: Third person singular, such as `owns`.
        question: The verb in a question; `{a}` is the person.
        things: Nouns in the plural.
    """

    verb: str
    question: str
    things: tuple[str, ...]


@dataclass(frozen=True)
class Wording:
    """Sentences of a prompt. Fields: `a`, `b`, `c` people, `v` verb, `n` number, `t` things, `m` a multiple.

    Attributes:
        start: The number of the first person.
        more: A difference upwards.
        fewer: A difference downwards.
        times: A multiple.
        both: A sum of two people's numbers.
        hidden_more: A difference upwards whose size only a tool reports.
        hidden_fewer: The same downwards.
        question: What is asked.
    """

    start: str
    more: str
    fewer: str
    times: str
    both: str
    hidden_more: str
    hidden_fewer: str
    question: str


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES: dict[Split, tuple[str, ...]] = {
    "train": _words(
        "Sam Ann Ben Tom Kim Max Dan Lily Paul Jack Anna Luke Mark Adam Alice Peter Henry David Simon Maria Carl Jane "
        "Ali Bob Tim Ray John James Mary Martin Robert Michael William George Thomas Charles Joseph Richard Frank Fred "
        "Greg Jim Ken Nick Sarah Scott Andrew Chris Daniel Emily"
    ),
    "test": _words(
        "Matthew Stephen Victor Alex Elizabeth Bill Jean Jeff Louis Anne Arthur Edward Maya Neil Samuel Stan"
    ),
}

SETTINGS: dict[Split, tuple[Setting, ...]] = {
    "train": (
        Setting("has", "How many {t} does {a} have?", ("cards", "shells", "coins", "books", "keys")),
        Setting("owns", "How many {t} does {a} own?", ("stamps", "maps", "pens", "cups", "birds")),
        Setting("picked", "How many {t} did {a} pick?", ("apples", "pears", "roses", "nuts")),
        Setting("found", "How many {t} did {a} find?", ("stones", "eggs", "balls", "feathers")),
        Setting("sold", "How many {t} did {a} sell?", ("tickets", "cakes", "bottles", "chairs")),
        Setting("read", "How many {t} did {a} read?", ("pages", "letters", "poems")),
        Setting("made", "How many {t} did {a} make?", ("boxes", "beads", "toys", "pies")),
        Setting("saved", "How many {t} did {a} save?", ("dollars", "points", "seeds")),
        Setting("counted", "How many {t} did {a} count?", ("sheep", "trees", "cars", "stars")),
    ),
    "test": (
        Setting("bought", "How many {t} did {a} buy?", ("lemons", "bags", "flowers")),
        Setting("planted", "How many {t} did {a} plant?", ("bushes", "bulbs", "oaks")),
        Setting("painted", "How many {t} did {a} paint?", ("pictures", "doors", "plates")),
        Setting("caught", "How many {t} did {a} catch?", ("fish", "crabs", "frogs")),
    ),
}

WORDINGS: dict[Split, tuple[Wording, ...]] = {
    "train": (
        Wording(
            "{a} {v} {n} {t}.",
            "{a} {v} {n} more than {b}.",
            "{a} {v} {n} fewer than {b}.",
            "{a} {v} {m} as many as {b}.",
            "{a} {v} as many as {b} and {c} together.",
            "{a} {v} more than {b}.",
            "{a} {v} fewer than {b}.",
            "{q}",
        ),
        Wording(
            "{a} {v} {n} {t}.",
            "{a} {v} {n} more {t} than {b}.",
            "{a} {v} {n} fewer {t} than {b}.",
            "{a} {v} {m} as many {t} as {b}.",
            "{a} {v} as many {t} as {b} and {c} together.",
            "{a} {v} some more {t} than {b}.",
            "{a} {v} some fewer {t} than {b}.",
            "{q}",
        ),
        Wording(
            "First, {a} {v} {n} {t}.",
            "Next, {a} {v} {n} more than {b}.",
            "Next, {a} {v} {n} fewer than {b}.",
            "Then {a} {v} {m} as many as {b}.",
            "Then {a} {v} as many as {b} and {c} together.",
            "Next, {a} {v} more than {b}.",
            "Next, {a} {v} fewer than {b}.",
            "{q}",
        ),
        Wording(
            "We know that {a} {v} {n} {t}.",
            "Compared with {b}, {a} {v} {n} more.",
            "Compared with {b}, {a} {v} {n} fewer.",
            "Compared with {b}, {a} {v} {m} as many.",
            "{a} {v} as many as {b} and {c}.",
            "Compared with {b}, {a} {v} more.",
            "Compared with {b}, {a} {v} fewer.",
            "{q}",
        ),
    ),
    "test": (
        Wording(
            "At first {a} {v} {n} {t}.",
            "And {a} {v} exactly {n} more than {b}.",
            "And {a} {v} exactly {n} fewer than {b}.",
            "And {a} {v} exactly {m} as many as {b}.",
            "And {a} {v} exactly as many as {b} and {c} together.",
            "And {a} {v} somewhat more than {b}.",
            "And {a} {v} somewhat fewer than {b}.",
            "Now say: {q}",
        ),
        Wording(
            "Suppose {a} {v} {n} {t}.",
            "Suppose {a} {v} {n} more of them than {b}.",
            "Suppose {a} {v} {n} fewer of them than {b}.",
            "Suppose {a} {v} {m} as many of them as {b}.",
            "Suppose {a} {v} as many of them as {b} and {c} together.",
            "Suppose {a} {v} more of them than {b}.",
            "Suppose {a} {v} fewer of them than {b}.",
            "{q}",
        ),
    ),
}
