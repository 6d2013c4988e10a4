"""The arms of an ablation. Same checkpoint, problems and draws; only the retained cache differs."""

from ghosttrace.ablation.arms.arm import Arm, Part
from ghosttrace.ablation.arms.full import Full
from ghosttrace.ablation.arms.memento import Memento
from ghosttrace.ablation.arms.noise import Noise
from ghosttrace.ablation.arms.placebo import PlaceboArm
from ghosttrace.ablation.arms.rerotated import Rerotated
from ghosttrace.ablation.arms.seal import Restart, RestartBare, RestartRenumbered, SealDelimiters, SealMementos
from ghosttrace.ablation.arms.swap import Swap

ARMS: dict[str, type[Arm]] = {
    arm.name: arm
    for arm in (
        Full,
        Memento,
        Restart,
        RestartBare,
        RestartRenumbered,
        Rerotated,
        PlaceboArm,
        SealDelimiters,
        SealMementos,
        Swap,
        Noise,
    )
}

__all__ = [
    "ARMS",
    "Arm",
    "Full",
    "Memento",
    "Noise",
    "Part",
    "PlaceboArm",
    "Rerotated",
    "Restart",
    "RestartBare",
    "RestartRenumbered",
    "SealDelimiters",
    "SealMementos",
    "Swap",
]
