"""`full`: nothing is erased."""

from dataclasses import dataclass, replace

from ghosttrace.ablation.arms.arm import Arm
from ghosttrace.law.expiry import MementoLaw, Policy
from ghosttrace.law.law import KeepAll, Law


@dataclass(frozen=True)
class Full(Arm):
    """Arm with full causal attention: nothing is erased."""

    name = "full"
    summary = "nothing is erased"
    headline = "Erasing nothing"
    colour = "#7a7a7a"
    priority = 1
    default = True
    any_law = True

    def adapt_policy(self, policy: Policy) -> Policy:
        return replace(policy, keep_last_n_blocks=-1)

    def adapt_law(self, law: Law) -> Law:
        return super().adapt_law(law) if isinstance(law, MementoLaw) else KeepAll()
