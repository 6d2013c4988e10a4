"""GhostTrace: measure the information that erased reasoning leaves in the KV cache.

    import ghosttrace as gt

    model = gt.load("toy-mixed")
    run = gt.ablate(model, bench="ledger-h1", arms=["restart", "swap"], limit=100)
    run.results        # pandas: accuracy and paired effect of every arm
    run.samples        # pandas: one row per sample
    run.figure("accuracy")

`ablate`, `bits`, `probe`, `patch` and `audit` take a model, settings, a folder (`out=`) and a progress callback, and
return a result; `sft` and `rl` train a model; `plan` estimates what such a run takes. `open_run` reads the same result
from a finished run folder.
"""

from typing import TYPE_CHECKING

from ghosttrace.lazy import attribute_loader

if TYPE_CHECKING:
    from ghosttrace.ablation.arms import ARMS, Arm, Part
    from ghosttrace.ablation.result import AblationResult
    from ghosttrace.ablation.run import ablate
    from ghosttrace.auditing.attacks import ATTACKS, Attack
    from ghosttrace.auditing.defences import DEFENCES, Defence
    from ghosttrace.auditing.result import AuditResult
    from ghosttrace.auditing.run import audit
    from ghosttrace.bench import Bench, Counterfactual, load_bench
    from ghosttrace.errors import RunWarning, UserError
    from ghosttrace.ghost_bits.result import BitsResult
    from ghosttrace.ghost_bits.run import bits
    from ghosttrace.law.expiry import NEVER, ExpiryTracker, MementoLaw, Policy, alive, erasures, expiry
    from ghosttrace.law.law import Erasure, Law
    from ghosttrace.law.markup import Block, Markup, find_blocks
    from ghosttrace.leaderboards.result import Leaderboard, leaderboard
    from ghosttrace.model.attention import attending, pad_batch
    from ghosttrace.model.checkpoint import Checkpoint, load
    from ghosttrace.model.generate import Generation, Request, generate
    from ghosttrace.model.sampling import Sampling
    from ghosttrace.model.session import Session
    from ghosttrace.patching.result import PatchResult
    from ghosttrace.patching.run import patch
    from ghosttrace.planning.run import RunPlan, plan
    from ghosttrace.probing.probes import PROBES, Probe
    from ghosttrace.probing.result import ProbeResult
    from ghosttrace.probing.run import probe
    from ghosttrace.probing.token_states import FeatureTable, features
    from ghosttrace.results import open_run
    from ghosttrace.runs.result import RunResult
    from ghosttrace.training.api import rl, sft
    from ghosttrace.training.result import RLResult, SftResult

__version__ = "0.1.0"

__getattr__ = attribute_loader(__name__, __file__)

__all__ = [
    "ARMS",
    "ATTACKS",
    "DEFENCES",
    "NEVER",
    "PROBES",
    "AblationResult",
    "Arm",
    "Attack",
    "AuditResult",
    "Bench",
    "BitsResult",
    "Block",
    "Checkpoint",
    "Counterfactual",
    "Defence",
    "Erasure",
    "ExpiryTracker",
    "FeatureTable",
    "Generation",
    "Law",
    "Leaderboard",
    "Markup",
    "MementoLaw",
    "Part",
    "PatchResult",
    "Policy",
    "Probe",
    "ProbeResult",
    "RLResult",
    "Request",
    "RunPlan",
    "RunResult",
    "RunWarning",
    "Sampling",
    "Session",
    "SftResult",
    "UserError",
    "ablate",
    "alive",
    "attending",
    "audit",
    "bits",
    "erasures",
    "expiry",
    "features",
    "find_blocks",
    "generate",
    "leaderboard",
    "load",
    "load_bench",
    "open_run",
    "pad_batch",
    "patch",
    "plan",
    "probe",
    "rl",
    "sft",
]


def __dir__() -> list[str]:
    return [*globals(), *__all__]
