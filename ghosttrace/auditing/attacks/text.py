"""`text`: what a reader of the retained text knows, without any cache. It always runs: the baseline of every attack."""

from dataclasses import dataclass

from ghosttrace.auditing.attacks.attack import Attack
from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.evidence import AttackEstimate, Evidence
from ghosttrace.auditing.threats import TEXT_READER


@dataclass(frozen=True)
class TextBaselineAttack(Attack):
    """Bits a secret that the text tells beyond how often each class occurs."""

    name = "text"
    title = "Text alone"
    summary = "What can be guessed from the retained text, without any cache: the baseline."
    threat = TEXT_READER

    def run(self, context: AuditContext) -> list[Evidence]:
        return [self._finding(context, secret) for secret in context.secrets]

    def _finding(self, context: AuditContext, secret: str) -> Evidence:
        sites = context.sites
        rows = sites[sites["target"].isin([one.name for one in context.parts(secret)])]
        known = rows[rows["condition"] == "exact"]
        rows = known if len(known) else rows[rows["condition"] == "text"]
        half = float(((rows["bits_high"] - rows["bits"]) ** 2).sum() ** 0.5)
        value = float(rows["bits"].sum())
        found = AttackEstimate(value, value - half, value + half)
        note = "exactly, from the retained text" if len(known) else "by a probe of the retained text"
        return self.evidence(secret, "text", "bits", found, int(rows["n_test"].iloc[0]), note=note)
