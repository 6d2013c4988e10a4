"""`restart-bare`: restart without the block delimiters that the policy keeps, as the published overlay restarts."""

from dataclasses import dataclass, replace

from ghosttrace.ablation.arms.restart import Restart
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy


@dataclass(frozen=True)
class RestartBare(Restart):
    """Restart that also evicts both delimiters of every block."""

    name = "restart-bare"
    summary = "restart without the delimiters that the policy keeps, as in the published overlay"
    headline = "Closing the channel and dropping the delimiters"
    colour = "#8c2d04"
    priority = 8

    def adapt_policy(self, policy: Policy) -> Policy:
        if policy.mask_delimiters:
            raise UserError("restart-bare drops delimiters that stay: this policy keeps none, so take restart")
        return replace(super().adapt_policy(policy), mask_delimiters=True)
