"""The threat models of an audit: which attacker has access to which data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Threat:
    """A threat model.

    Attributes:
        name: Name in the results.
        summary: Access and actions of the attacker; a phrase that completes "an attacker who ...".
        advice: Countermeasures against a leak to this attacker, in sentences.
    """

    name: str
    summary: str
    advice: str


INSIDER = Threat(
    "insider",
    "reads the retained keys and values, their text and the weights, and has other traces to train on",
    "Whoever can read the retained cache can read the secret. Give the cache the access rights, and the time to live, "
    "of the text that was removed from it.",
)
TENANT = Threat(
    "tenant",
    "receives the retained keys and values by mistake, without the text",
    "Do not pass this cache on: no prefix caching and no reuse across tenants, and clear it when its session ends.",
)
USER = Threat(
    "user",
    "continues to prompt the same session, and sees the model's probabilities",
    "A user who continues to prompt can extract the secret. End the session, or recompute its cache from the retained "
    "text as soon as the session no longer needs the secret.",
)
TEXT_READER = Threat(
    "reader",
    "sees only the retained text, which no defence of the cache changes",
    "The retained text reveals the secret, and no defence of the cache helps: change the content of the mementos.",
)

THREATS = (INSIDER, TENANT, USER, TEXT_READER)
"""The threat models, in the order of the report."""
