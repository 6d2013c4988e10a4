"""GhostTrace: what erased reasoning leaves in the cache, and how to measure it.

import ghosttrace as gt

run = gt.ablate("toy-mixed", bench="ledger-h1", arms=("restart", "swap"), limit=100)
run.results        # pandas: accuracy and paired effect of every arm
run.samples        # pandas: one row per sample
"""

from ghosttrace.ablation.arms import ARMS, Part
from ghosttrace.ablation.result import AblationResult
from ghosttrace.ablation.run import ablate
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import NEVER, ExpiryTracker, Policy, alive, erasures, expiry
from ghosttrace.law.markup import Block, Markup, find_blocks
from ghosttrace.model.attention import attending, pad_batch
from ghosttrace.model.checkpoint import Checkpoint, load
from ghosttrace.model.generate import Generation, Request, generate
from ghosttrace.model.sampling import Sampling
from ghosttrace.patching.result import PatchResult
from ghosttrace.patching.run import patch
from ghosttrace.probing.probes import PROBES, Probe
from ghosttrace.probing.result import ProbeResult
from ghosttrace.probing.run import probe
from ghosttrace.probing.token_states import FeatureTable, features

__version__ = "0.1.0"

__all__ = [
    "ARMS",
    "NEVER",
    "PROBES",
    "AblationResult",
    "Block",
    "Checkpoint",
    "ExpiryTracker",
    "FeatureTable",
    "Generation",
    "Markup",
    "Part",
    "PatchResult",
    "Policy",
    "Probe",
    "ProbeResult",
    "Request",
    "Sampling",
    "UserError",
    "ablate",
    "alive",
    "attending",
    "erasures",
    "expiry",
    "features",
    "find_blocks",
    "generate",
    "load",
    "pad_batch",
    "patch",
    "probe",
]
