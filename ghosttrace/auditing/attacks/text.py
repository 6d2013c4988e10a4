"""`text`: prediction from the retained text alone, without a cache. It always runs: the baseline of every attack."""

from dataclasses import dataclass

from ghosttrace.auditing.attacks.attack import Attack
from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.evidence import AttackEstimate, Evidence
from ghosttrace.auditing.threats import TEXT_READER


@dataclass(frozen=True)
class TextBaselineAttack(Attack):
    """Attack that measures the bits per secret that the text gives beyond the class frequencies."""

    name = "text"
    title = "Text alone"
    summary = "The secret is predicted from the retained text, without any cache: the baseline."
    threat = TEXT_READER

    def run(self, context: AuditContext) -> list[Evidence]:
        return [self._finding(context, secret) for secret in context.secrets]

    def _finding(self, context: AuditContext, secret: str) -> Evidence:
        sites = context.sites
        rows = sites[sites["target"].isin([target.name for target in context.parts(secret)])]
        exact_rows = rows[rows["condition"] == "exact"]
        rows = exact_rows if len(exact_rows) else rows[rows["condition"] == "text"]
        half_width = float(((rows["bits_high"] - rows["bits"]) ** 2).sum() ** 0.5)
        value = float(rows["bits"].sum())
        estimate = AttackEstimate(value, value - half_width, value + half_width)
        note = "exactly, from the retained text" if len(exact_rows) else "by a probe of the retained text"
        return self.evidence(secret, "text", "bits", estimate, int(rows["n_test"].iloc[0]), note=note)
