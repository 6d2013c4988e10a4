"""The attacks, each in a file of its own."""

from ghosttrace.auditing.attacks.attribute import attribute, best_site, tenant
from ghosttrace.auditing.attacks.behavioural import Prompt, behavioural, parse
from ghosttrace.auditing.attacks.collision import collision
from ghosttrace.auditing.attacks.membership import membership
from ghosttrace.auditing.attacks.ranking import ranking

ATTACKS = ("attribute", "ranking", "membership", "behavioural", "collision")

__all__ = [
    "ATTACKS",
    "Prompt",
    "attribute",
    "behavioural",
    "best_site",
    "collision",
    "membership",
    "parse",
    "ranking",
    "tenant",
]
