"""`seal-delimiters`: only the retained block delimiters are recomputed."""

from dataclasses import dataclass

from ghosttrace.ablation.arms.restart import Restart
from ghosttrace.ablation.arms.sealer import Sealer
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy
from ghosttrace.model.session import Eraser, Session


@dataclass(frozen=True)
class SealDelimiters(Restart):
    """Arm that recomputes only the retained block delimiters."""

    name = "seal-delimiters"
    summary = "only the retained block delimiters recomputed"
    headline = "Sealing the delimiters"
    colour = "#8c6bb1"
    any_law = False
    priority = 4
    sealed = False
    default = False

    def adapt_policy(self, policy: Policy) -> Policy:
        if policy.mask_delimiters:
            raise UserError(
                "seal-delimiters needs retained delimiters, and this policy erases them: use a model that keeps them"
            )
        return super().adapt_policy(policy)

    def eraser(self, session: Session) -> Eraser:
        return Sealer(session, self.part.of_carrier("delimiters"))
