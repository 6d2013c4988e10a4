"""`restart-bare`: `restart` that also erases the block delimiters, as the published vLLM overlay does."""

from dataclasses import dataclass, replace

from ghosttrace.ablation.arms.restart import Restart
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy


@dataclass(frozen=True)
class RestartBare(Restart):
    """Arm that restarts and also evicts both delimiters of every block."""

    name = "restart-bare"
    summary = "restart that also erases the block delimiters, as in the published vLLM overlay"
    headline = "Closing the channel and dropping the delimiters"
    colour = "#8c2d04"
    any_law = False
    priority = 8

    def adapt_policy(self, policy: Policy) -> Policy:
        if policy.mask_delimiters:
            raise UserError("restart-bare needs retained delimiters, and this policy erases them: use restart")
        return replace(super().adapt_policy(policy), mask_delimiters=True)
