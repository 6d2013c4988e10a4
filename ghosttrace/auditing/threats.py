"""Who an attacker is and what they hold: the threat models of an audit."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Threat:
    """One kind of attacker.

    Attributes:
        name: as in the results.
        summary: what the attacker holds and does.
        advice: what to do about a leak to this attacker.
    """

    name: str
    summary: str
    advice: str


INSIDER = Threat(
    "insider",
    "reads the retained keys and values, their text and the weights, and has traces of their own to learn from",
    "Whoever can read the retained cache can read the secret. Give the cache the access rights, and the time to live, "
    "of the text that was dropped from it.",
)
TENANT = Threat(
    "tenant",
    "is handed the retained keys and values by mistake, without the text",
    "Do not pass this cache on: no prefix caching and no reuse across tenants, and clear it when its session ends.",
)
USER = Threat(
    "user",
    "goes on prompting the same session, and sees the model's probabilities",
    "A user who goes on prompting can draw the secret out. End the session, or recompute its cache from the retained "
    "text, where the secret must not be known any more.",
)
TEXT_READER = Threat(
    "reader",
    "sees the retained text alone: what no defence of the cache can change",
    "The retained text gives the secret away, and no defence of the cache helps: change what mementos say.",
)

THREATS = (INSIDER, TENANT, USER, TEXT_READER)
"""In the order of the report."""
