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

__version__ = "0.1.0"

__all__ = [
    "ARMS",
    "NEVER",
    "AblationResult",
    "Block",
    "Checkpoint",
    "ExpiryTracker",
    "Generation",
    "Markup",
    "Part",
    "Policy",
    "Request",
    "Sampling",
    "UserError",
    "ablate",
    "alive",
    "attending",
    "erasures",
    "expiry",
    "find_blocks",
    "generate",
    "load",
    "pad_batch",
]
