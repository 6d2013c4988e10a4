"""What an ablation runs: the settings that the command line and the Python API share."""

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
    """A sequence as a list; one string as the names in it, separated by commas, as the command line takes them."""
    return list(items.split(",")) if isinstance(items, str) else list(items)


@dataclass(frozen=True)
class AblationSettings:
    """What an ablation runs.

    Attributes:
        arms: names in `ghosttrace.ablation.arms.ARMS`, or arms of your own; `memento`, the reference, always runs.
            None: the default arms that mean something for the checkpoint and the benchmark.
        repetitions: samples of each problem; None: the benchmark's protocol.
        limit: problems of each benchmark.
        seed: of problems and draws.
        batch_size: rows decoded together; None: 128, or on a GPU what its memory surely holds.
        sampling: fields of `Sampling` that override the protocol's.
        part: what the sealing arms seal.
        noise: relative size of the arm `noise`.
    """

    arms: tuple[str | Arm, ...] | None = None
    repetitions: int | None = None
    limit: int | None = None
    seed: int = 0
    batch_size: int | None = None
    sampling: dict[str, float | int | None] = field(default_factory=dict)
    part: Part = field(default_factory=Part)
    noise: float = 0.5

    def __post_init__(self) -> None:
        chosen = [make_arm(one, self.part, self.noise) for one in (ARMS if self.arms is None else self.arms)]
        check_arm_names(self.arms or (), [REFERENCE_ARM])
        unknown = self.sampling.keys() - {one.name for one in fields(Sampling)}
        if unknown:
            known = ", ".join(one.name for one in fields(Sampling))
            raise UserError(f"sampling has no {min(unknown)}: its fields are {known}")
        parted = [name for name, kind in ARMS.items() if "part" in kind.options]
        acting = [arm for arm in chosen if self.arms is not None or arm.default]
        if not self.part.is_whole_cache and not any("part" in arm.options for arm in acting):
            raise UserError(f"--layers, --heads and --kv choose what a sealing arm seals: add {' or '.join(parted)}")
        if min(self.batch_size or 1, self.repetitions or 1) < 1 or 0 in (self.batch_size, self.repetitions):
            raise UserError("--batch-size and --repetitions are at least 1")
        if self.seed < 0 or not 0 <= self.noise < inf:
            raise UserError("--seed and --noise are not negative")

    def chosen_arms(self) -> list[Arm]:
        """The arms to run, the reference first."""
        default = [name for name, kind in ARMS.items() if kind.default]
        asked = default if self.arms is None else self.arms
        arms = [make_arm(one, self.part, self.noise) for one in (REFERENCE_ARM, *asked)]
        return list({arm.name: arm for arm in arms}.values())

    def to_dict(self) -> dict[str, Any]:
        """As run.json holds it; an arm of your own as its `repr`."""
        plain = {name: getattr(self, name) for name in ("repetitions", "limit", "seed", "batch_size", "noise")}
        arms = None if self.arms is None else [one if isinstance(one, str) else stable_repr(one) for one in self.arms]
        part = {name: getattr(self.part, name) for name in ("layers", "heads", "kv", "carrier", "last")}
        return {"arms": arms, **plain, "sampling": dict(self.sampling), "part": part}


def make_arm(arm: str | Arm, part: Part, noise: float) -> Arm:
    """An arm by its name, with the settings that concern it; an arm of the user's own as it is.

    Raises:
        UserError: there is no arm of this name.
    """
    if not isinstance(arm, str):
        check_method(arm, Arm, "name", "summary")
        if not re.fullmatch("#[0-9a-fA-F]{6}", arm.colour):
            raise UserError(f"the arm {arm.name} has the colour {arm.colour!r}: give a code such as #aa3377")
        return arm
    if arm not in ARMS:
        raise UserError(f"no arm {arm!r}: choose from {', '.join(ARMS)}")
    kind, options = ARMS[arm], {"part": part, "size": noise}
    return kind(**{name: options[name] for name in kind.options})


def check_arm_names(arms: Sequence[str | Arm], always: Sequence[str]) -> None:
    """Refuse arms of the user's own whose name another arm has: their samples could not be told apart.

    Args:
        arms: that were asked for.
        always: the arms that run whatever is asked for.

    Raises:
        UserError: two arms have the same name.
    """
    named = [arm for arm in arms if isinstance(arm, str)]
    own = [arm for arm in arms if isinstance(arm, Arm)]
    for number, arm in enumerate(own):
        others = [*named, *(other.name for other in own[:number])]
        if arm.name in others or (arm.name in always and type(arm) is not ARMS[arm.name]):
            raise UserError(f"two arms are called {arm.name!r}: give yours a name of its own")
