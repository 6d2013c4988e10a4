"""The attacks of an audit, one per file."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ghosttrace.lazy import LazyClasses, attribute_loader

if TYPE_CHECKING:
    from ghosttrace.auditing.attacks.attack import Attack
    from ghosttrace.auditing.attacks.text import TextBaselineAttack

ATTACKS: "Mapping[str, type[Attack]]" = LazyClasses(
    __name__,
    {
        "attribute": "attribute.AttributeAttack",
        "tenant": "tenant.TenantAttack",
        "ranking": "ranking.RankingAttack",
        "membership": "membership.MembershipAttack",
        "behavioural": "behavioural.BehaviouralAttack",
        "collision": "collision.CollisionAttack",
    },
)
"""The attacks by name. All of them run by default. The baseline, `TextBaselineAttack`, always runs."""

__getattr__ = attribute_loader(__name__, __file__)

__all__ = ["ATTACKS", "Attack", "TextBaselineAttack"]
