"""`seal-delimiters`: only the block delimiters that the policy keeps are recomputed."""

from dataclasses import dataclass

from ghosttrace.ablation.arms.restart import Restart
from ghosttrace.ablation.arms.sealer import Sealer
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy
from ghosttrace.model.session import Eraser, Session


@dataclass(frozen=True)
class SealDelimiters(Restart):
    """Only the retained block delimiters recomputed."""

    name = "seal-delimiters"
    summary = "only the retained block delimiters recomputed"
    headline = "Sealing the delimiters"
    colour = "#8c6bb1"
    priority = 4
    sealed = False
    default = False

    def adapt_policy(self, policy: Policy) -> Policy:
        if policy.mask_delimiters:
            raise UserError("seal-delimiters needs delimiters that stay: this policy erases them (--keep-delimiters)")
        return super().adapt_policy(policy)

    def eraser(self, session: Session) -> Eraser:
        return Sealer(session, self.part.of_carrier("delimiters"))
