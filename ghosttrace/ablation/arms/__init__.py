"""The arms of an ablation, one per file. All arms share checkpoint, problems and random draws."""

from ghosttrace.ablation.arms.arm import Arm
from ghosttrace.ablation.arms.full import Full
from ghosttrace.ablation.arms.memento import Memento
from ghosttrace.ablation.arms.noise import Noise
from ghosttrace.ablation.arms.part import Part
from ghosttrace.ablation.arms.placebo import PlaceboArm
from ghosttrace.ablation.arms.rerotated import Rerotated
from ghosttrace.ablation.arms.restart import Restart
from ghosttrace.ablation.arms.restart_bare import RestartBare
from ghosttrace.ablation.arms.restart_renumbered import RestartRenumbered
from ghosttrace.ablation.arms.seal_delimiters import SealDelimiters
from ghosttrace.ablation.arms.seal_mementos import SealMementos
from ghosttrace.ablation.arms.swap import Swap

ARMS: dict[str, type[Arm]] = {
    arm.name: arm
    for arm in (
        Memento,
        Full,
        PlaceboArm,
        Restart,
        RestartBare,
        RestartRenumbered,
        Rerotated,
        Swap,
        SealDelimiters,
        SealMementos,
        Noise,
    )
}
"""The arms that can be selected by name, in the order in which they run."""

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
