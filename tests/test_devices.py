"""The family matrix in float32 and bfloat16, on the CPU and on a GPU where there is one."""

from copy import deepcopy

import pytest
import torch
from families import FAMILIES, tiny
from test_arms import MATRIX, TRACES
from traces import MARKUP

from ghosttrace.attention import attending, pad_batch
from ghosttrace.expiry import Policy, expiry
from ghosttrace.generate import Request, generate
from ghosttrace.sampling import Sampling
from ghosttrace.session import Session

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=gpu)]
# bfloat16 keeps 8 bits: logits of these models, up to about 30, agree to a few hundredths of their spread.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.02}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("device", DEVICES)
def test_eviction_equals_masking(family: str, dtype: torch.dtype, device: str) -> None:
    model = deepcopy(tiny(family)).to(device, dtype)
    laws = [expiry(tokens, MARKUP, Policy(True)) for tokens in TRACES]
    batch = pad_batch(TRACES, laws, pad_id=0, device=device)
    with attending(model):
        masked = model(**batch.inputs, use_cache=False).logits.float()
        evicted = Session(model, MARKUP, Policy(True), [(0,), (1,)]).advance(TRACES, every=True)
        unerased = Session(model, MARKUP, Policy(True, -1), [(0,), (1,)]).advance(TRACES, every=True)
    for row in range(len(TRACES)):
        expected = masked[row, : len(TRACES[row])]
        gaps = [(found[row].float() - expected).abs().mean() / expected.std() for found in (evicted, unerased)]
        assert gaps[0] < TOLERANCE[dtype] < gaps[1] / 2, gaps


@pytest.mark.parametrize("name", MATRIX)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("device", DEVICES)
def test_every_arm_decodes(name: str, dtype: torch.dtype, device: str) -> None:
    model = deepcopy(tiny("gemma3")).to(device, dtype)
    case = MATRIX[name]
    prompts = [tokens[: tokens.index(3) + 1] for tokens in TRACES]
    requests = [
        Request(
            prompt,
            (row,),
            lambda t, row=row: TRACES[row][t.trace.position] if t.trace.position < len(TRACES[row]) else None,  # type: ignore[misc]
        )
        for row, prompt in enumerate(prompts)
    ]
    law = case.arm.law(case.policy)
    done = generate(model, requests, MARKUP, law, Sampling(80, temperature=0.8, top_p=0.9), case.arm.eraser)
    for tokens, generation in zip(TRACES, done, strict=True):
        assert (generation.prompt + generation.tokens)[: len(tokens)] == tokens
        assert generation.blocks >= 5
