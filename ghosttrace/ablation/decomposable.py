"""Whether a run can be decomposed: its benchmarks, its arms, and what it seals."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ghosttrace.errors import UserError

if TYPE_CHECKING:
    from ghosttrace.ablation.settings import AblationSettings
    from ghosttrace.bench import Bench

DECOMPOSITION_ARMS = ("restart", "restart-bare", "restart-renumbered", "rerotated", "swap")
"""Arms that a complete decomposition compares with each other and with `memento`."""


def check_request(
    benches: "Sequence[Bench]", settings: "AblationSettings", applicable: Collection[str], other_law: bool
) -> None:
    """Check before a run that it can be decomposed.

    Args:
        benches: The benchmarks.
        settings: The settings of the run.
        applicable: Names of the default arms that the checkpoint, the benchmarks and the backend support.
        other_law: Whether another law than Memento's decides what leaves.

    Raises:
        UserError: It cannot, or the arms that were asked for lack some that the decomposition needs.
    """
    check_conditions([None if bench.condition is None else asdict(bench.condition) for bench in benches])
    check_sealing(settings.to_dict()["part"], other_law)
    chosen = {arm.name for arm in settings.chosen_arms()}
    missing = [arm for arm in DECOMPOSITION_ARMS if arm in applicable and arm not in chosen]
    if missing:
        raise UserError(f"a decomposition also needs --arms {','.join(missing)}: add them, or leave out --arms")


def check_conditions(conditions: list[Mapping[str, Any] | None]) -> None:
    """Check that the mementos of some benchmark omit a value that the answer needs.

    Args:
        conditions: Fields of the condition of each benchmark; None where it declares none.

    Raises:
        UserError: There is none.
    """
    if not any(condition is not None and condition["omits_needed"] for condition in conditions):
        from ghosttrace.bench import decomposable_groups  # loads torch, which a page of a finished run does without

        raise UserError(
            "a decomposition needs a benchmark that declares that its mementos omit a needed value: give --bench "
            f"{' or '.join(decomposable_groups())}"
        )


def check_sealing(part: Mapping[str, Any], other_law: bool) -> None:
    """Check that a run seals the whole cache, under the law that the conditions are about.

    Args:
        part: Fields of `ghosttrace.ablation.arms.Part`.
        other_law: Whether another law than Memento's decides what leaves.

    Raises:
        UserError: It does not.
    """
    if other_law:
        raise UserError("a decomposition is about what mementos omit, and under this law they leave too: remove --law")
    if any(part[name] is not None for name in ("layers", "heads", "carrier", "last")) or len(part["kv"]) == 1:
        raise UserError("a decomposition needs the whole cache sealed: leave out --layers, --heads and --kv")
