"""The attacks, each in a file of its own."""

from ghosttrace.auditing.attacks.attack import Attack
from ghosttrace.auditing.attacks.attribute import AttributeAttack
from ghosttrace.auditing.attacks.behavioural import BehaviouralAttack
from ghosttrace.auditing.attacks.collision import CollisionAttack
from ghosttrace.auditing.attacks.membership import MembershipAttack
from ghosttrace.auditing.attacks.ranking import RankingAttack
from ghosttrace.auditing.attacks.tenant import TenantAttack
from ghosttrace.auditing.attacks.text import TextBaselineAttack

ATTACKS: dict[str, type[Attack]] = {
    kind.name: kind
    for kind in (
        AttributeAttack,
        TenantAttack,
        RankingAttack,
        MembershipAttack,
        BehaviouralAttack,
        CollisionAttack,
    )
}
"""The attacks that can be asked for by name; all of them by default. `TextBaselineAttack`, the baseline, always runs."""

__all__ = ["ATTACKS", "Attack", "TextBaselineAttack"]
