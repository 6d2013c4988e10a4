"""The base class of attacks."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.evidence import AttackEstimate, AttackSite, Evidence
from ghosttrace.auditing.threats import Threat


@dataclass(frozen=True)
class Attack(ABC):
    """Base class of attacks. A subclass is a frozen dataclass that sets the class fields below and defines `run`.

    Pass an attack of your own as an object: `audit(attacks=[MyAttack()])`. To add an attack to the package, put it in
    its own file in this folder and list it in `ghosttrace.auditing.attacks.ATTACKS`.

    Attributes:
        name: Name on the command line and in the results.
        title: Name in reports.
        summary: What the attack does and what it measures, in one sentence.
        threat: The threat model that the attack belongs to.
        units: Units of its findings, from `ghosttrace.auditing.evidence.UNITS`.
        counts_bits: Whether the attack returns findings that decide the verdict: bits per secret beyond the text,
            with `gate=True`.
        probes_single_site: Whether the attack fits probes at a single site of the cache. If it does, a finding of no
            leak counts only for leaks that such probes can detect.
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
        """Attack every secret of `attackable_secrets` and return the findings, those of the controls included."""

    def check(self, context: AuditContext) -> None:  # noqa: B027  # most attacks accept all settings
        """Refuse settings under which the attack is meaningless, before any cache is read.

        Raises:
            UserError: The settings do not fit the attack.
        """

    def secrets(self, context: AuditContext) -> tuple[str, ...]:
        """Return the names of the secrets under attack: all secrets, unless the attack recovers whole blocks."""
        return tuple(context.secrets)

    def skip_reason(self, context: AuditContext, secret: str) -> str | None:
        """Return why the attack cannot run on a secret, or None if it can; no cache has been read yet."""
        return None

    def attackable_secrets(self, context: AuditContext) -> tuple[str, ...]:
        """Return the secrets that the attack can run on."""
        return tuple(secret for secret in self.secrets(context) if self.skip_reason(context, secret) is None)

    def skip_reason_for_all(self, context: AuditContext) -> str | None:
        """Return why the attack cannot run on any secret, or None if it can run on at least one."""
        reasons = [self.skip_reason(context, secret) for secret in self.secrets(context)]
        return None if None in reasons else next(iter(reasons), "the audit has no secret for it")

    def n_gated(self, context: AuditContext) -> int:
        """Return the number of findings that decide the verdict; their intervals share the run's error rate."""
        return len(self.attackable_secrets(context)) if self.counts_bits else 0

    def describe(self) -> dict[str, Any]:
        """Return the attack as JSON values for summary.json, so that reports need no attack classes."""
        fields = ("title", "summary", "counts_bits", "probes_single_site")
        return {name: getattr(self, name) for name in fields} | {"threat": self.threat.name, "units": list(self.units)}

    def evidence(
        self,
        secret: str,
        condition: str,
        unit: str,
        estimate: AttackEstimate,
        n: int,
        *,
        baseline: float = 0.0,
        gate: bool = False,
        site: AttackSite | None = None,
        note: str = "",
        fell_back: bool = False,
    ) -> Evidence:
        """Return a finding of this attack. The arguments are the fields of `Evidence`."""
        return Evidence(
            self.name,
            secret,
            condition,
            unit,
            estimate,
            n,
            baseline,
            gate,
            self.probes_single_site,
            site=site or AttackSite(),
            note=note,
            fell_back=fell_back,
        )
