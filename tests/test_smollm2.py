"""A pretrained language model that no one here trained: SmolLM2-135M under every law, in float32.

`make lm` downloads it; without it these tests are skipped.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import ghosttrace as gt
from ghosttrace.ablation.arms import Memento
from ghosttrace.bench.agent import example_chats
from ghosttrace.ghost_bits.likelihood import log2_probabilities
from ghosttrace.law.layout import open_layout, sealed_layout
from ghosttrace.model.checkpoint import Checkpoint, resolve_pretrained_path
from ghosttrace.model.states import model_inputs

NAME = "smollm2-135m"
pytestmark = pytest.mark.skipif(
    not Path(resolve_pretrained_path(NAME)).exists(), reason="SmolLM2 has not been downloaded: run `make lm`"
)
LAWS = ("tools:0", "window:110,40", "chunks:40,12", "turns:3,1", "sinks:4,60")


@cache
def model() -> Checkpoint:
    return gt.load(NAME, dtype="float32", device="cpu", law="none")


@cache
def eager() -> PreTrainedModel:
    path = resolve_pretrained_path(NAME)
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def session_ids() -> list[int]:
    return model().prompt_ids(example_chats(1, 5)[0]["messages"])[:170]


def written_out(ids: np.ndarray, position: np.ndarray, expiry: np.ndarray) -> torch.Tensor:
    """Return the logits of a pass whose attention is written out: eager kernels and a dense mask."""
    step = np.arange(len(ids))
    seen = (step[None, :] <= step[:, None]) & (step[:, None] < expiry[None, :])
    mask = torch.zeros(1, 1, len(ids), len(ids)).masked_fill(~torch.from_numpy(seen), torch.finfo(torch.float32).min)
    with torch.no_grad():
        tokens, positions = (torch.from_numpy(row)[None] for row in (ids, position))
        return torch.as_tensor(eager()(input_ids=tokens, position_ids=positions, attention_mask=mask).logits[0])


@pytest.mark.parametrize("spec", LAWS)
def test_masked_passes_equal_attention_written_out(spec: str) -> None:
    """Open and sealed, to 1e-4 in log-probabilities."""
    checkpoint, ids = model().with_law(spec), session_ids()
    assert len(checkpoint.law.erasures(ids)), "the law erases nothing"
    layouts = [open_layout(ids, checkpoint.law)]
    if not spec.startswith("sinks"):  # its sealed layout recomputes the window at every step
        layouts.append(sealed_layout(ids[:120], checkpoint.law))
    for layout in layouts:
        reference = written_out(layout.tokens, layout.token_index, layout.expiry).log_softmax(-1)
        with torch.no_grad(), gt.attending(checkpoint.model) as attending:
            logits = attending(**model_inputs([layout], checkpoint.model)).logits[0]
        torch.testing.assert_close(logits.log_softmax(-1), reference, atol=1e-4, rtol=0)


@pytest.mark.parametrize("spec", LAWS)
def test_eviction_equals_the_masked_pass(spec: str) -> None:
    checkpoint, ids = model().with_law(spec), session_ids()
    layout = open_layout(ids, checkpoint.law)
    (evicted,) = log2_probabilities(checkpoint, Memento(), [ids])
    log2p = written_out(layout.tokens, layout.token_index, layout.expiry).log_softmax(-1) / np.log(2)
    expected = log2p[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()
    # Where the token that is read causes an erasure, the next one is predicted before it; both readings agree.
    np.testing.assert_allclose(evicted, expected, atol=2e-4)


def test_a_stock_model_is_named_by_its_download() -> None:
    assert model().name == NAME and not model().markup.has_delimiters
    with pytest.raises(gt.UserError, match="give the tokens that it uses instead"):
        gt.load(NAME)
