"""Settings of an ablation, shared by the command line and the Python API."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from math import inf
from typing import Any, TypeVar

from ghosttrace.ablation.arms import ARMS, Arm, Part
from ghosttrace.errors import UserError, check_method
from ghosttrace.model.sampling import Sampling
from ghosttrace.runs.folder import REFERENCE_ARM, stable_repr

Item = TypeVar("Item")


def as_list(items: str | Sequence[Item | str]) -> list[Item | str]:
    """Return a sequence as a list, and split a single string at its commas, as the command line does."""
    return list(items.split(",")) if isinstance(items, str) else list(items)


@dataclass(frozen=True)
class AblationSettings:
    """Settings of an ablation.

    Attributes:
        arms: Names in `ghosttrace.ablation.arms.ARMS` or `Arm` objects. The reference `memento` always runs. None
            means the default arms that the checkpoint and the benchmark support.
        repetitions: Samples per problem. None means the benchmark's protocol.
        limit: Number of problems per benchmark. None means all problems, or the default of a generated benchmark.
        seed: Random seed of generated problems and of sampling.
        batch_size: Number of rows decoded together. None means 128, or on a GPU what fits into its memory.
        sampling: Fields of `Sampling` that override the benchmark's protocol.
        part: The part of the cache that sealing arms recompute.
        noise: Standard deviation of the arm `noise`, relative to the root mean square of the states.
        margin: Margin of the test of equivalence, in percentage points, set before the run. None for no test.
        decompose: Whether to decompose the drop under `restart` (see `ghosttrace.ablation.decomposition`).

    Raises:
        UserError: A setting is invalid, or two arms have the same name.
    """

    arms: tuple[str | Arm, ...] | None = None
    repetitions: int | None = None
    limit: int | None = None
    seed: int = 0
    batch_size: int | None = None
    sampling: dict[str, float | int | None] = field(default_factory=dict)
    part: Part = field(default_factory=Part)
    noise: float = 0.5
    margin: float | None = None
    decompose: bool = False

    def __post_init__(self) -> None:
        arms = [make_arm(arm, self.part, self.noise) for arm in (ARMS if self.arms is None else self.arms)]
        check_arm_names(self.arms or (), [REFERENCE_ARM])
        names = [field.name for field in fields(Sampling)]
        unknown = self.sampling.keys() - set(names)
        if unknown:
            raise UserError(f"sampling has no {min(unknown)}: use the fields {', '.join(names)}")
        with_part = [name for name, kind in ARMS.items() if "part" in kind.options]
        to_run = [arm for arm in arms if self.arms is not None or arm.default]
        if not self.part.is_whole_cache and not any("part" in arm.options for arm in to_run):
            raise UserError(f"--layers, --heads and --kv choose what a sealing arm seals: add {' or '.join(with_part)}")
        if min(self.batch_size or 1, self.repetitions or 1) < 1 or 0 in (self.batch_size, self.repetitions):
            raise UserError("--batch-size and --repetitions must be at least 1")
        if self.seed < 0 or not 0 <= self.noise < inf:
            raise UserError("--seed and --noise must be finite and not negative")
        if self.margin is not None and not 0 < self.margin < 100:
            raise UserError(f"--margin must lie between 0 and 100 percentage points, not {self.margin:g}")

    def chosen_arms(self) -> list[Arm]:
        """Return the arms to run, the reference first."""
        default = [name for name, kind in ARMS.items() if kind.default]
        requested = default if self.arms is None else self.arms
        arms = [make_arm(arm, self.part, self.noise) for arm in (REFERENCE_ARM, *requested)]
        return list({arm.name: arm for arm in arms}.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values for run.json; `Arm` objects become their `repr`."""
        names = ("repetitions", "limit", "seed", "batch_size", "noise", "margin", "decompose")
        scalars = {name: getattr(self, name) for name in names}
        arms = None if self.arms is None else [arm if isinstance(arm, str) else stable_repr(arm) for arm in self.arms]
        part = {name: getattr(self.part, name) for name in ("layers", "heads", "kv", "carrier", "last")}
        return {"arms": arms, **scalars, "sampling": dict(self.sampling), "part": part}


def make_arm(arm: str | Arm, part: Part, noise: float) -> Arm:
    """Return the arm with this name; return an `Arm` object unchanged.

    Args:
        arm: Name in `ghosttrace.ablation.arms.ARMS`, or an `Arm` object.
        part: The part of the cache to seal, used if the named arm has a field `part`.
        noise: Relative size of the noise, used if the named arm has a field `size`.

    Raises:
        UserError: No arm has this name, or the object is not a valid arm.
    """
    if not isinstance(arm, str):
        check_method(arm, Arm, "name", "summary")
        if not re.fullmatch("#[0-9a-fA-F]{6}", arm.colour):
            raise UserError(f"the arm {arm.name} has the invalid colour {arm.colour!r}: give a code such as #aa3377")
        return arm
    if arm not in ARMS:
        raise UserError(f"no arm {arm!r}: choose from {', '.join(ARMS)}")
    kind, options = ARMS[arm], {"part": part, "size": noise}
    return kind(**{name: options[name] for name in kind.options})


def check_arm_names(arms: Sequence[str | Arm], always: Sequence[str]) -> None:
    """Check that no custom arm has the name of another arm, because samples are identified by the arm's name.

    Args:
        arms: The requested arms, names or `Arm` objects.
        always: Names of the arms that always run.

    Raises:
        UserError: Two arms have the same name.
    """
    names = [arm for arm in arms if isinstance(arm, str)]
    custom = [arm for arm in arms if isinstance(arm, Arm)]
    for index, arm in enumerate(custom):
        others = [*names, *(other.name for other in custom[:index])]
        if arm.name in others or (arm.name in always and type(arm) is not ARMS[arm.name]):
            raise UserError(f"two arms are called {arm.name!r}: rename your arm")
