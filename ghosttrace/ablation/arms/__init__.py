"""The arms of an ablation, one per file. All arms share checkpoint, problems and random draws."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ghosttrace.lazy import LazyClasses, attribute_loader

if TYPE_CHECKING:
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

ARMS: "Mapping[str, type[Arm]]" = LazyClasses(
    __name__,
    {
        "memento": "memento.Memento",
        "full": "full.Full",
        "placebo": "placebo.PlaceboArm",
        "restart": "restart.Restart",
        "restart-bare": "restart_bare.RestartBare",
        "restart-renumbered": "restart_renumbered.RestartRenumbered",
        "rerotated": "rerotated.Rerotated",
        "swap": "swap.Swap",
        "seal-delimiters": "seal_delimiters.SealDelimiters",
        "seal-mementos": "seal_mementos.SealMementos",
        "noise": "noise.Noise",
    },
)
"""The arms that can be selected by name, in the order in which they run."""

__getattr__ = attribute_loader(__name__, __file__)

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
