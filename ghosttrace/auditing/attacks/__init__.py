"""The attacks of an audit, one per file."""

from ghosttrace.auditing.attacks.attack import Attack
from ghosttrace.auditing.attacks.attribute import AttributeAttack
from ghosttrace.auditing.attacks.behavioural import BehaviouralAttack
from ghosttrace.auditing.attacks.collision import CollisionAttack
from ghosttrace.auditing.attacks.membership import MembershipAttack
from ghosttrace.auditing.attacks.ranking import RankingAttack
from ghosttrace.auditing.attacks.tenant import TenantAttack
from ghosttrace.auditing.attacks.text import TextBaselineAttack

ATTACKS: dict[str, type[Attack]] = {
    attack.name: attack
    for attack in (
        AttributeAttack,
        TenantAttack,
        RankingAttack,
        MembershipAttack,
        BehaviouralAttack,
        CollisionAttack,
    )
}
"""The attacks by name. All of them run by default. The baseline, `TextBaselineAttack`, always runs."""

__all__ = ["ATTACKS", "Attack", "TextBaselineAttack"]
