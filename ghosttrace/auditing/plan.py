"""What an audit is to do, whether it can come to a verdict at all, and what of it could not be done."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np

from ghosttrace.auditing.attacks.behavioural import Prompt
from ghosttrace.auditing.attacks.collision import comparable
from ghosttrace.auditing.attacks.ranking import MOST
from ghosttrace.auditing.context import Exhibit
from ghosttrace.auditing.evidence import Evidence
from ghosttrace.errors import UserError

WHY = {
    "ranking": f"it could be more than {MOST:,} things, too many to rank one by one",
    "membership": "all its traces hold the same, so that no false claim can be made of it",
    "behavioural": "no prompt asks for it (--prompt)",
    "collision": "too few blocks have others as long with the very same memento, which could stand in for them",
}


@dataclass(frozen=True)
class Plan:
    """What an audit does.

    Attributes:
        attacks: of `ATTACKS`.
        max_leak: bits a secret that are allowed.
        fpr: the rate of false claims at which membership is judged; None: 1 %, if there are traces enough.
        prompts: for each secret, what a user types to get it; secrets without one are not asked for.
    """

    attacks: tuple[str, ...]
    max_leak: float
    fpr: float | None
    prompts: Mapping[str, Prompt]

    def check(self, exhibit: Exhibit) -> None:
        """Refuse what cannot come to a verdict, before any cache is read.

        Args:
            exhibit: without features, and perhaps without what is asked.

        Raises:
            UserError: no attack would count bits, or traces are too few for the rate of false claims asked for.
        """
        validation, traces = (len(np.unique(exhibit.split.cluster[part])) for part in (exhibit.split.validation, ...))
        if "membership" in self.attacks and self.fpr is not None and validation * self.fpr < 1:
            raise UserError(
                f"{validation} independent traces on validation cannot set a threshold for {self.fpr:g} false claims: "
                f"give {ceil(traces / validation / self.fpr):,} independent traces, or a higher --fpr"
            )
        counted = {
            "attribute": lambda: True,
            "behavioural": lambda: bool(self.prompts),
            "collision": lambda: comparable(exhibit),
        }
        asked = [name for name in counted if name in self.attacks]
        if not any(counted[name]() for name in asked):
            why = "; ".join(f"{name}: {WHY[name]}" for name in asked)
            raise UserError(
                f"the verdict needs bits, and nothing here would count any ({why}): add attribute to --attacks"
            )

    def left_out(self, secrets: Iterable[str], evidence: Iterable[Evidence]) -> tuple[str, ...]:
        """What could not be done, and why, a sentence each."""
        done = {(one.attack, one.secret) for one in evidence}
        wanted = [(name, secret) for name in self.attacks if name != "collision" for secret in secrets]
        wanted += [("collision", "block")] * ("collision" in self.attacks)
        return tuple(
            f"{name} of {secret} was left out: {WHY[name]}." for name, secret in wanted if (name, secret) not in done
        )
