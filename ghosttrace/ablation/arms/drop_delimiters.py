"""`drop-delimiters`: the block's delimiters leave with it, and nothing is recomputed."""

from dataclasses import dataclass, replace

from ghosttrace.ablation.arms.arm import Arm
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy


@dataclass(frozen=True)
class DropDelimiters(Arm):
    """Both delimiters of a block evicted with it; a kept `<|block_end|>` has seen the whole block."""

    name = "drop-delimiters"
    summary = "block delimiters that the policy keeps are erased with their block"

    def adapt_policy(self, policy: Policy) -> Policy:
        if policy.mask_delimiters:
            raise UserError("drop-delimiters drops delimiters that stay: this policy keeps none, so take memento")
        return replace(super().adapt_policy(policy), mask_delimiters=True)
