"""The family matrix in float32 and bfloat16, on the CPU and, if present, on a GPU."""

from copy import deepcopy

import pytest
import torch
from helpers.arm_matrix import MATRIX, TRACES, other_blocks
from helpers.families import FAMILIES, tiny
from helpers.traces import MARKUP

from ghosttrace.law.expiry import Policy, expiry
from ghosttrace.model.attention import attending, pad_batch
from ghosttrace.model.session import Session

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=gpu)]
# bfloat16 keeps 8 bits: logits of these models, up to about 30, agree to a few hundredths of their spread.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.02}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("device", DEVICES)
def test_eviction_equals_masking(family: str, dtype: torch.dtype, device: str) -> None:
    model = deepcopy(tiny(family)).to(device, dtype)
    expiries = [expiry(tokens, MARKUP, Policy(True)) for tokens in TRACES]
    batch = pad_batch(TRACES, expiries, pad_id=0, device=device)
    with attending(model):
        masked = model(**batch.inputs, use_cache=False).logits.float()
        evicted = Session(model, MARKUP, Policy(True), [(0,), (1,)]).advance(TRACES, all_logits=True)
        unerased = Session(model, MARKUP, Policy(True, -1), [(0,), (1,)]).advance(TRACES, all_logits=True)
    for row in range(len(TRACES)):
        expected = masked[row, : len(TRACES[row])]
        gaps = [(logits[row].float() - expected).abs().mean() / expected.std() for logits in (evicted, unerased)]
        assert gaps[0] < TOLERANCE[dtype] < gaps[1] / 2, gaps


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", ["qwen3", "gemma3", "olmo3"])
def test_arm_guarantees(family: str, dtype: torch.dtype, device: str) -> None:
    """`placebo` equals `memento` up to rounding, sealed arms ignore blocks bitwise, and other arms differ."""
    model = deepcopy(tiny(family)).to(device, dtype)

    def last(name: str, tokens: list[list[int]]) -> torch.Tensor:
        case = MATRIX[name]
        with attending(model):
            session = Session(model, MARKUP, case.arm.adapt_policy(case.policy), [(0,), (1,)], case.arm.eraser)
            session.advance(tokens)
        return session.logits.float()

    for name, case in MATRIX.items():
        reference, logits = last("memento", TRACES), last(name, TRACES)
        assert logits.isfinite().all()
        if case.policy == MATRIX["memento"].policy:
            gap = (logits - reference).abs().mean() / reference.std()
            assert (gap > TOLERANCE[dtype]) == case.differs_from_memento, (name, gap)
        assert torch.equal(logits, last(name, [other_blocks(t) for t in TRACES])) == case.ignores_block_content, name
