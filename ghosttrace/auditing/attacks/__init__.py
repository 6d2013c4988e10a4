"""The attacks, each in a file of its own."""

from ghosttrace.auditing.attacks.attack import Attack
from ghosttrace.auditing.attacks.attribute import Attribute
from ghosttrace.auditing.attacks.behavioural import Behavioural
from ghosttrace.auditing.attacks.collision import Collision
from ghosttrace.auditing.attacks.membership import Membership
from ghosttrace.auditing.attacks.ranking import Ranking
from ghosttrace.auditing.attacks.tenant import Tenant
from ghosttrace.auditing.attacks.text import TextAlone

ATTACKS: dict[str, type[Attack]] = {
    kind.name: kind
    for kind in (
        Attribute,
        Tenant,
        Ranking,
        Membership,
        Behavioural,
        Collision,
    )
}
"""The attacks that can be asked for by name; all of them by default. `TextAlone`, the baseline, always runs."""

__all__ = ["ATTACKS", "Attack", "TextAlone"]
