"""What an attack is: who runs it, what it measures, when it can be run, and what it finds."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.evidence import AttackEstimate, AttackSite, Evidence
from ghosttrace.auditing.threats import Threat


@dataclass(frozen=True)
class Attack(ABC):
    """One attack: a frozen dataclass with the class fields below and `run`.

    An attack of your own is passed as an object, `audit(attacks=[MyAttack()])`; to add it to the package, put it in
    a file of its own here and name it in `ghosttrace.auditing.attacks.ATTACKS`.

    Attributes:
        name: as on the command line and in the results.
        title: its name in reports.
        summary: what it does and what it measures, in one sentence.
        threat: the kind of attacker it stands for.
        units: of its findings, of `ghosttrace.auditing.evidence.UNITS`.
        counts_bits: its findings can decide the verdict: bits a secret beyond the text, with `gate=True`.
        probes_single_site: it fits probes of one place of the cache, so that a finding of nothing counts as far as such
            probes would have seen a leak of known size.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    threat: ClassVar[Threat]
    units: ClassVar[tuple[str, ...]] = ("bits",)
    counts_bits: ClassVar[bool] = False
    probes_single_site: ClassVar[bool] = False

    @abstractmethod
    def run(self, context: AuditContext) -> list[Evidence]:
        """Attack every secret of `attackable_secrets`, and find what there is to find under the controls."""

    def check(self, context: AuditContext) -> None:  # noqa: B027  # most attacks have nothing to refuse
        """Refuse settings with which the attack means nothing, before any cache is read.

        Raises:
            UserError: the sentence names the fix.
        """

    def secrets(self, context: AuditContext) -> tuple[str, ...]:
        """What the attack is after: every secret, unless it attacks the block as a whole."""
        return tuple(context.secrets)

    def skip_reason(self, context: AuditContext, secret: str) -> str | None:
        """Why the attack cannot be run on one of its secrets, before any cache is read; None if it can."""
        return None

    def attackable_secrets(self, context: AuditContext) -> tuple[str, ...]:
        """The secrets on which it can be run."""
        return tuple(secret for secret in self.secrets(context) if self.skip_reason(context, secret) is None)

    def skip_reason_for_all(self, context: AuditContext) -> str | None:
        """Why the attack cannot be run on any secret; None if it can on at least one."""
        reasons = [self.skip_reason(context, secret) for secret in self.secrets(context)]
        return None if None in reasons else next(iter(reasons), "there is no secret that it is after")

    def n_gated(self, context: AuditContext) -> int:
        """How many of its findings decide the verdict: their intervals share the run's error rate."""
        return len(self.attackable_secrets(context)) if self.counts_bits else 0

    def describe(self) -> dict[str, Any]:
        """The attack as summary.json records it, for reports that know nothing of attacks: JSON values."""
        shown = ("title", "summary", "counts_bits", "probes_single_site")
        return {name: getattr(self, name) for name in shown} | {"threat": self.threat.name, "units": list(self.units)}

    def evidence(
        self,
        secret: str,
        condition: str,
        unit: str,
        found: AttackEstimate,
        n: int,
        *,
        baseline: float = 0.0,
        gate: bool = False,
        site: AttackSite | None = None,
        note: str = "",
    ) -> Evidence:
        """One finding of this attack; the arguments are those of `Evidence`."""
        where = site or AttackSite()
        return Evidence(
            self.name, secret, condition, unit, found, n, baseline, gate, self.probes_single_site, site=where, note=note
        )
