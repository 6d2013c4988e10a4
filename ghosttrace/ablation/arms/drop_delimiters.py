"""`drop-delimiters`: the block's delimiters are erased with it, and nothing is recomputed."""

from dataclasses import dataclass, replace

from ghosttrace.ablation.arms.arm import Arm
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy


@dataclass(frozen=True)
class DropDelimiters(Arm):
    """Arm that evicts both delimiters with their block, because a kept `<|block_end|>` has seen the whole block."""

    name = "drop-delimiters"
    summary = "block delimiters that the policy keeps are erased with their block"

    def adapt_policy(self, policy: Policy) -> Policy:
        if policy.mask_delimiters:
            raise UserError("drop-delimiters needs retained delimiters, and this policy erases them: use memento")
        return replace(super().adapt_policy(policy), mask_delimiters=True)
