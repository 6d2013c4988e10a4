"""nnsight with block erasure: states equal `read_states` on every family, and patching equals TransformerLens."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.bridges import LAYOUTS, batch, check_states, example, tiny_checkpoint
from helpers.families import FAMILIES, tiny
from transformers import AutoModelForCausalLM, GPT2Config

from ghosttrace.bridges import nnsight as nns
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy
from ghosttrace.law.layout import open_layout
from ghosttrace.model import attention
from ghosttrace.model.checkpoint import load, load_tokenizer, resolve_pretrained_path
from ghosttrace.model.states import read_states

nnsight = pytest.importorskip("nnsight", reason="the extra `nnsight` is not installed")
from nnsight.modeling.transformers import TransformersModel  # noqa: E402


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_states_equal_read_states(family: str, kind: str) -> None:
    check_states(partial(nns.read_states, nns.wrap(tiny_checkpoint(family))), family, kind)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_transformers_model_gives_the_same_states(kind: str) -> None:
    """A loaded model with its tokenizer, which nnsight sets to left padding."""
    layouts, indices = batch(kind)
    model = TransformersModel(tiny_checkpoint("gemma3").model, tokenizer=load_tokenizer("toy-mixed"))
    actual, expected = nns.read_states(model, layouts, indices), read_states(tiny("gemma3"), layouts, indices)
    torch.testing.assert_close(actual.keys, expected.keys, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(actual.values, expected.values, atol=1e-5, rtol=1e-5)


def test_lazily_loaded_weights_are_loaded() -> None:
    bundled = load("toy-mixed", device="cpu")
    tokens = bundled.prompt_ids("x042")
    layouts, indices = [open_layout(tokens, bundled.markup, Policy(True))], [np.arange(len(tokens))]
    model = TransformersModel(resolve_pretrained_path("toy-mixed"), task="text-generation")
    assert not model.dispatched
    actual, expected = nns.read_states(model, layouts, indices), read_states(bundled.model, layouts, indices)
    assert torch.equal(actual.keys, expected.keys) and torch.equal(actual.values, expected.values)


def test_model_is_restored() -> None:
    """After a trace, after one that raises, and after one that stops at a layer."""
    stock_model = tiny_checkpoint("olmo3").model
    model = nnsight.NNsight(stock_model)
    tokens, expiry = torch.arange(8, 48)[None], torch.full((1, 40), 20)
    before = stock_model(tokens).logits
    with nns.attending(model):
        with model.trace(tokens, expiry=expiry):
            masked = model.output.logits.save()
        assert (masked - before).abs().max() > 1e-2
        with model.trace(tokens):
            unmasked = model.output.logits.save()
        torch.testing.assert_close(unmasked, before, atol=1e-6, rtol=1e-6)
        with model.trace(tokens, expiry=expiry) as tracer:
            model.model.layers[1].output.save()
            tracer.stop()
        assert attention._VISIBILITY.get() is None
    with pytest.raises(KeyError, match="in a trace"), nns.attending(model):  # noqa: PT012, SIM117
        with model.trace(tokens, expiry=expiry):
            model.model.layers[2].output.save()
            raise KeyError("in a trace")
    assert attention._VISIBILITY.get() is None
    assert (
        stock_model.config._attn_implementation == "sdpa"
        and not stock_model._forward_pre_hooks
        and not stock_model._forward_hooks
    )
    assert torch.equal(stock_model(tokens).logits, before)


def test_invalid_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    given = tiny_checkpoint("llama")
    with pytest.raises(UserError, match="LlamaForCausalLM is no nnsight model"), nns.attending(given.model):
        pass
    other = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4))
    with pytest.raises(UserError, match=r"GPT2LMHeadModel has no .* attention_interface"):
        nns.read_states(nnsight.NNsight(other), *batch("open"))
    assert other.config._attn_implementation != attention.ATTENTION_NAME
    with torch.no_grad():
        given.model.model.layers[2].self_attn.v_proj.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="values of layer 2 are not finite"):
        nns.read_states(nns.wrap(given), *batch("open"))
    monkeypatch.setitem(sys.modules, "nnsight", None)
    for call in (nns.wrap, lambda it: nns.attending(it).__enter__()):
        with pytest.raises(UserError, match=r"pip install -e '\.\[nnsight\]'"):
            call(given)


def test_examples_of_both_tools_agree(tmp_path: Path) -> None:
    pytest.importorskip("transformer_lens", reason="the extra `lens` is not installed")
    assert example(tmp_path, 0, 2)["shares"] == example(tmp_path, 0, 1)["shares"]
