"""The attacks, each in a file of its own."""

from ghosttrace.audit.attacks.attribute import attribute, best_site, tenant
from ghosttrace.audit.attacks.behavioural import Prompt, behavioural, parse
from ghosttrace.audit.attacks.collision import collision
from ghosttrace.audit.attacks.membership import membership
from ghosttrace.audit.attacks.ranking import ranking

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
