"""Teacher forcing under an arm: log-probabilities of every token of a trace, with the arm's cache erasure."""

from collections.abc import Sequence

import numpy as np
import torch

from ghosttrace.ablation.arms import Arm
from ghosttrace.law.law import Law
from ghosttrace.model.attention import attending
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.session import Session

MAX_LOGIT_BYTES = 2**28
"""Maximum size of the float32 logits of one forward pass."""


def log2_probabilities(
    checkpoint: Checkpoint, arm: Arm, traces: Sequence[Sequence[int]], keys: Sequence[tuple[int, ...]] | None = None
) -> list[np.ndarray]:
    """Return the log2 probability of every token given the tokens before it, under an arm.

    Args:
        checkpoint: the model and its law.
        arm: determines what happens to the cache when tokens expire.
        traces: token ids of each trace. Lengths may differ.
        keys: for arms that draw random numbers, the key of each trace's random stream. Default: its index in `traces`.

    Returns:
        One float64[T - 1] per trace: log2 p of tokens 1 to T - 1.
    """
    model = checkpoint.model
    chunk_length = max(1, MAX_LOGIT_BYTES // (4 * model.config.get_text_config().vocab_size * len(traces)))
    log2p_chunks: list[list[np.ndarray]] = [[] for _ in traces]
    with attending(model):
        row_keys = keys or [(row,) for row in range(len(traces))]
        session = Session(
            model, checkpoint.markup, checkpoint.policy, row_keys, arm.eraser, arm.adapt_law(checkpoint.law)
        )
        for begin in range(0, max(map(len, traces)) - 1, chunk_length):
            chunks = [list(ids[:-1][begin : begin + chunk_length]) for ids in traces]
            for row, logits in enumerate(session.advance(chunks, all_logits=True)):
                next_ids = torch.tensor(traces[row][begin + 1 : begin + 1 + len(chunks[row])], device=logits.device)
                next_logits = logits.gather(-1, next_ids[:, None].long())[:, 0].float()
                logp = (next_logits - logits.float().logsumexp(-1)).double()
                log2p_chunks[row].append(logp.cpu().numpy() / np.log(2))
    return [np.concatenate(chunks) for chunks in log2p_chunks]


def first_measured_index(ids: Sequence[int], law: Law) -> int:
    """Return the index of the first token at which arms can differ, or `len(ids)` if nothing is erased.

    Args:
        ids: token ids of one trace.
        law: which tokens leave the cache and when.
    """
    return min((erasure.first_affected for erasure in law.erasures(ids)), default=len(ids))
