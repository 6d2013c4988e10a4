"""Teacher forcing under an arm: the probability of every token of a trace, evicting as the arm does."""

from collections.abc import Sequence

import numpy as np
import torch

from ghosttrace.ablation.arms import Arm
from ghosttrace.law.expiry import Policy, erasures
from ghosttrace.law.markup import Markup
from ghosttrace.model.attention import attending
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.session import Session

MAX_LOGIT_BYTES = 2**28  # of the logits of one piece


def log2_probabilities(
    checkpoint: Checkpoint, arm: Arm, traces: Sequence[Sequence[int]], keys: Sequence[tuple[int, ...]] | None = None
) -> list[np.ndarray]:
    """The probability of every token given those before it, under an arm.

    Args:
        checkpoint: the model and its law.
        arm: what happens to the cache when blocks expire.
        traces: token ids, of any lengths.
        keys: what the draws of each trace belong to, for arms that draw; else its place in the batch.

    Returns:
        For each trace float64[T - 1], log2 p of tokens 1 to T - 1.
    """
    model = checkpoint.model
    piece = max(1, MAX_LOGIT_BYTES // (4 * model.config.get_text_config().vocab_size * len(traces)))
    found: list[list[np.ndarray]] = [[] for _ in traces]
    with attending(model):
        rows = keys or [(row,) for row in range(len(traces))]
        session = Session(model, checkpoint.markup, arm.adapt_policy(checkpoint.policy), rows, arm.eraser)
        for begin in range(0, max(map(len, traces)) - 1, piece):
            parts = [list(ids[:-1][begin : begin + piece]) for ids in traces]
            for row, logits in enumerate(session.advance(parts, all_logits=True)):
                following = torch.tensor(traces[row][begin + 1 : begin + 1 + len(parts[row])], device=logits.device)
                chosen = logits.gather(-1, following[:, None].long())[:, 0].float()
                logp = (chosen - logits.float().logsumexp(-1)).double()
                found[row].append(logp.cpu().numpy() / np.log(2))
    return [np.concatenate(pieces) for pieces in found]


def first_measured_index(ids: Sequence[int], markup: Markup, policy: Policy) -> int:
    """The place of the first token at which the arms can differ; the length of the trace if there is none."""
    gone = erasures(ids, markup, policy)
    return min((max(erasure.expires_at, erasure.block.memento_end + 1) for erasure in gone), default=len(ids))
