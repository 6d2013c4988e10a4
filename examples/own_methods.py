"""Define your own arm, benchmark, attack and defence without changing the package.

    python examples/own_methods.py

Each method is a frozen dataclass, or a `Bench`, that is passed as an object. The script takes about a minute on two
cores.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

import ghosttrace as gt
from ghosttrace.ablation.arms import Arm
from ghosttrace.auditing.attacks import Attack
from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.defences import Defence
from ghosttrace.auditing.evidence import AttackSite, Evidence, rate_estimate
from ghosttrace.auditing.threats import INSIDER
from ghosttrace.bench import Bench, Grade, Problem, load_bench
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.session import Eraser, RowErasures


class Zeroer(Eraser):
    """Eraser that sets the values of each memento to zero when its block expires."""

    def erase(self, erasures: list[RowErasures]) -> None:
        super().erase(erasures)
        cache = self.session.cache
        for erasure in erasures:
            held = cache.held_indices(erasure.row)
            for block in erasure.blocks:
                inside = (held >= block.memento_start) & (held <= block.memento_end)
                slots = torch.from_numpy(np.flatnonzero(inside))
                for layer in cache.layers:
                    layer.values[erasure.row, :, slots] = 0.0


@dataclass(frozen=True)
class ZeroValues(Arm):
    """Arm in which mementos keep their keys and lose their values."""

    name = "zero-values"
    summary = "the mementos' values set to zero"
    headline = "Zeroing the mementos' values"
    colour = "#aa3377"

    def eraser(self, session: gt.Session) -> Eraser:
        return Zeroer(session)


def last_digit(problem: Problem, text: str) -> Grade:
    """Grade a response by the last digit of its answer only."""
    digit = text[-1:] if text[-1:].isdigit() else None
    return Grade(digit == problem.answer[-1], digit, "last-digit/exact")


def last_digit_bench(problems: int = 40) -> Bench:
    """Return `ledger-h1`, graded only on the digit that its mementos hide."""
    (base,) = load_bench("ledger-h1", problems)
    return replace(base, name="last-digit", grade=last_digit, ceiling=0.1)


@dataclass(frozen=True)
class ZeroValuesDefence(Defence):
    """Defence that applies the arm `ZeroValues`."""

    name = "zero-values"
    summary = "the mementos' values set to zero"

    def arm(self, checkpoint: Checkpoint) -> Arm:
        return ZeroValues()


@dataclass(frozen=True)
class NearestNeighbour(Attack):
    """Attack that guesses each part of the secret from the training trace with the nearest states."""

    name = "nearest-neighbour"
    title = "Nearest neighbour"
    summary = "Each part of the secret is guessed from the training trace with the nearest retained states."
    threat = INSIDER
    units = ("rate",)

    def run(self, context: AuditContext) -> list[Evidence]:
        return [
            self._measure(context, secret, condition) for secret in context.secrets for condition in ("open", "sealed")
        ]

    def _measure(self, context: AuditContext, secret: str, condition: str) -> Evidence:
        site, parts = context.best_site(secret), context.parts(secret)
        states = site.read(context.features[condition])
        train, test = (context.labelled_rows(secret, rows) for rows in (context.split.train, context.split.test))
        nearest = train[torch.cdist(states[test], states[train]).argmin(1).numpy()]
        right = np.concatenate([part.labels[test] == part.labels[nearest] for part in parts])
        chance = 1 / parts[0].text.shape[1]
        estimate = rate_estimate(int(right.sum()), len(right))
        attack_site = AttackSite.from_probe_site(site)
        return self.evidence(
            secret, condition, "rate", estimate, len(right), baseline=chance, site=attack_site, note="of all parts"
        )


def main(arguments: Sequence[str] = ()) -> None:
    """Run each method once and print its results."""
    model = gt.load("toy-mixed")
    run = gt.ablate(model, last_digit_bench(), arms=["restart", ZeroValues()])
    print(run.results[["bench", "arm", "accuracy", "effect"]].to_string(index=False))
    settings = {"bench": "ledger-h3", "samples": 400, "layers": [3], "hops": [0], "kv": ["v"], "mlp": False}
    audit = gt.audit(
        model,
        attacks=["attribute", NearestNeighbour()],
        defence=ZeroValuesDefence(),
        utility_limit=10,
        **settings,
    )
    rows = audit.results[audit.results["attack"] == "nearest-neighbour"]
    print(rows[["attack", "secret", "condition", "estimate", "baseline"]].to_string(index=False))
    print(audit.verdict)


if __name__ == "__main__":
    main()
