"""An arm, a benchmark, a probe, an attack and a defence of your own, without touching the package.

    python examples/own_methods.py

Each method is a frozen dataclass (or a `Bench`) that is passed as an object. Takes about a minute on two cores.
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
    """Sets the values of each memento to zero when its block expires."""

    def erase(self, hits: list[RowErasures]) -> None:
        super().erase(hits)
        cache = self.session.cache
        for hit in hits:
            held = cache.held_indices(hit.row)
            for block in hit.blocks:
                inside = (held >= block.memento_start) & (held <= block.memento_end)
                slots = torch.from_numpy(np.flatnonzero(inside))
                for layer in cache.layers:
                    layer.values[hit.row, :, slots] = 0.0


@dataclass(frozen=True)
class ZeroValues(Arm):
    """An arm: mementos keep their keys and lose their values."""

    name = "zero-values"
    summary = "the mementos' values set to zero"
    headline = "Zeroing the mementos' values"
    colour = "#aa3377"

    def eraser(self, session: gt.Session) -> Eraser:
        return Zeroer(session)


def last_digit(problem: Problem, text: str) -> Grade:
    """A grader: only the last digit of the answer counts."""
    found = text[-1:] if text[-1:].isdigit() else None
    return Grade(found == problem.answer[-1], found, "last-digit/exact")


def last_digit_bench(problems: int = 40) -> Bench:
    """A benchmark: `ledger-h1`, graded on the one digit that its mementos hide."""
    (base,) = load_bench("ledger-h1", problems)
    return replace(base, name="last-digit", grade=last_digit, ceiling=0.1)


@dataclass(frozen=True)
class ZeroValuesDefence(Defence):
    """A defence: what `ZeroValues` does, in an audit."""

    name = "zero-values"
    summary = "the mementos' values set to zero"

    def arm(self, checkpoint: Checkpoint) -> Arm:
        return ZeroValues()


@dataclass(frozen=True)
class NearestNeighbour(Attack):
    """An attack: the secret of the training trace whose state is nearest, part by part."""

    name = "nearest-neighbour"
    title = "Nearest neighbour"
    summary = "Each part of the secret is taken from the training trace whose retained states are nearest."
    threat = INSIDER
    units = ("rate",)

    def run(self, context: AuditContext) -> list[Evidence]:
        return [
            self._found(context, secret, condition) for secret in context.secrets for condition in ("open", "sealed")
        ]

    def _found(self, context: AuditContext, secret: str, condition: str) -> Evidence:
        site, parts = context.best_site(secret), context.parts(secret)
        states = site.read(context.features[condition])
        train, test = (context.labelled_rows(secret, rows) for rows in (context.split.train, context.split.test))
        nearest = train[torch.cdist(states[test], states[train]).argmin(1).numpy()]
        right = np.concatenate([part.labels[test] == part.labels[nearest] for part in parts])
        chance = 1 / parts[0].text.shape[1]
        found = rate_estimate(int(right.sum()), len(right))
        return self.evidence(
            secret, condition, "rate", found, len(right), baseline=chance, site=AttackSite.of(site), note="of all parts"
        )


def main(arguments: Sequence[str] = ()) -> None:
    """Run each of them once and print what came out."""
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
