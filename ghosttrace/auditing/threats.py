"""Who could want to know, and what they hold: the threat models of an audit."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Threat:
    """One kind of attacker.

    Attributes:
        name: as in the results.
        summary: what the attacker holds and does.
        attacks: which attacks stand for it.
    """

    name: str
    summary: str
    attacks: tuple[str, ...]


THREATS = (
    Threat(
        "insider",
        "reads the retained keys and values, their text and the weights, and has traces of their own to learn from",
        ("attribute", "ranking", "membership", "collision"),
    ),
    Threat("tenant", "is handed the retained keys and values by mistake, without the text", ("tenant",)),
    Threat("user", "goes on prompting the same session, and sees the model's probabilities", ("behavioural",)),
    Threat("reader", "sees the retained text alone: what no defence of the cache can change", ("text",)),
)
THREAT_OF = {attack: threat.name for threat in THREATS for attack in threat.attacks}
