"""TransformerLens with block erasure: states equal `read_states` on every family with the needed hooks."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.bridges import LAYOUTS, batch, check_states, example, tiny_checkpoint
from helpers.families import FAMILIES, SIZE, tiny
from transformers import HunYuanDenseV1Config, HunYuanDenseV1ForCausalLM

from ghosttrace.bridges import transformer_lens as lens
from ghosttrace.errors import UserError
from ghosttrace.law.markup import find_blocks
from ghosttrace.model import attention
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.states import model_inputs, read_states

pytest.importorskip("transformer_lens", reason="the extra `lens` is not installed")
FUSED = {"phi3", "phi3-window"}  # TransformerLens has no hook on the rotated keys of these families


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - FUSED))
def test_states_equal_read_states(family: str, kind: str) -> None:
    check_states(partial(lens.read_states, lens.bridge_of(tiny_checkpoint(family))), family, kind)


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_follow_the_law(family: str, kind: str) -> None:
    """On every family, including Phi3 and sliding windows, which lack hooks."""
    inputs = model_inputs(batch(kind)[0], tiny(family))
    bridge = lens.bridge_of(tiny_checkpoint(family))
    with attention.attending(tiny(family)), lens.attending(bridge), torch.no_grad():
        expected = tiny(family)(**inputs, use_cache=False).logits
        tokens, expiry = inputs.pop("input_ids"), inputs.pop("expiry")
        actual, causal = bridge(tokens, expiry=expiry, **inputs), bridge(tokens, **inputs)
    real = inputs["attention_mask"] == 1
    torch.testing.assert_close(actual[real], expected[real], atol=1e-5, rtol=1e-5)
    assert (causal[real] - expected[real]).abs().max() > 1e-2


@pytest.mark.parametrize("family", sorted(FUSED))
def test_missing_hook_is_named_in_the_error(family: str) -> None:
    """The alternative in the message works on the converted model."""
    bridge = lens.bridge_of(tiny_checkpoint(family))
    layouts, indices = batch("open")
    with pytest.raises(
        UserError, match=r"no hook blocks\.\{layer\}\.attn\.hook_rot_k in Phi3ForCausalLM: read .*states"
    ):
        lens.read_states(bridge, layouts, indices)
    advised, expected = (read_states(model, layouts, indices) for model in (bridge.original_model, tiny(family)))
    torch.testing.assert_close(advised.keys, expected.keys, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(advised.values, expected.values, atol=1e-5, rtol=1e-5)


def test_hook_with_other_keys_is_refused() -> None:
    """HunYuan normalises keys after rotating them, that is, after the hook point."""
    torch.manual_seed(0)
    model = HunYuanDenseV1ForCausalLM(HunYuanDenseV1Config(**SIZE, head_dim=16)).eval()
    model.config.architectures = [type(model).__name__]
    given = tiny_checkpoint("llama")
    bridge = lens.bridge_of(Checkpoint("hunyuan", model, given.tokenizer, given.markup, given.policy))
    with pytest.raises(UserError, match="hook_rot_k differs from the cache of HunYuanDenseV1ForCausalLM"):
        lens.read_states(bridge, *batch("open"))


def test_existing_hooks_are_applied_and_kept() -> None:
    bridge = lens.bridge_of(tiny_checkpoint("llama"))
    layouts, indices = batch("open")
    unhooked = lens.read_states(bridge, layouts, indices)
    bridge.add_hook("blocks.1.attn.v.hook_out", lambda values, hook: values * 2)
    for _ in range(2):
        doubled = lens.read_states(bridge, layouts, indices)
        assert torch.equal(doubled.values[:1], unhooked.values[:1]) and torch.equal(
            doubled.values[1], 2 * unhooked.values[1]
        )
        assert not torch.equal(doubled.values[2], unhooked.values[2])


def test_compatibility_mode() -> None:
    """In this mode TransformerLens renames hook points and folds norms into weights."""
    bridge = lens.bridge_of(tiny_checkpoint("llama"))
    layouts, indices = batch("open")
    bridge.enable_compatibility_mode()
    actual, expected = lens.read_states(bridge, layouts, indices), read_states(tiny("llama"), layouts, indices)
    torch.testing.assert_close(actual.keys, expected.keys, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(actual.values, expected.values, atol=1e-5, rtol=1e-5)


def test_model_is_restored() -> None:
    """After a pass, after one in which a hook raises, and after one that stops at a layer."""
    bridge = lens.bridge_of(tiny_checkpoint("olmo3"))
    model, tokens = bridge.original_model, torch.arange(8, 48)[None]
    before, expiry = bridge(tokens), torch.full((1, 40), 20)

    def fail(states: torch.Tensor, hook: object) -> None:
        raise KeyError("in a hook")

    with lens.attending(bridge):
        assert (bridge(tokens, expiry=expiry) - before).abs().max() > 1e-2
        assert torch.equal(bridge(tokens), before)
        bridge(tokens, expiry=expiry, stop_at_layer=2)
        assert attention._VISIBILITY.get() is None
        assert torch.equal(bridge(tokens), before)
    with pytest.raises(KeyError, match="in a hook"), lens.attending(bridge):
        bridge.run_with_hooks(tokens, fwd_hooks=[("blocks.2.attn.hook_rot_k", fail)], expiry=expiry)
    assert attention._VISIBILITY.get() is None
    assert model.config._attn_implementation == "eager" and not model._forward_pre_hooks and not model._forward_hooks
    assert not any(point.fwd_hooks for point in bridge.hook_dict.values())
    assert torch.equal(bridge(tokens), before)


def test_invalid_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    given = tiny_checkpoint("llama")
    with pytest.raises(UserError, match="LlamaForCausalLM is no TransformerBridge"), lens.attending(given.model):
        pass
    with torch.no_grad():
        given.model.model.layers[2].self_attn.v_proj.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="values of layer 2 are not finite"):
        lens.read_states(lens.bridge_of(given), *batch("open"))
    monkeypatch.setitem(sys.modules, "transformer_lens.model_bridge", None)
    for call in (lens.bridge_of, lambda it: lens.attending(it).__enter__()):
        with pytest.raises(UserError, match=r"pip install -e '\.\[lens\]'"):
            call(given)


def test_example_of_patching_a_memento(tmp_path: Path) -> None:
    """Only the donor's values at the last layer carry the answer."""
    variables = example(tmp_path, 0, 1)
    assert variables["shares"] == {
        (layer, kind): float((layer, kind) == (3, "v")) for layer in range(4) for kind in "kv"
    }
    texts = [set(map(tuple, variables[name][:, variables["memento"]].tolist())) for name in ("original", "donor")]
    assert texts[0] == texts[1] and len(texts[0]) == 1  # the donor has the same memento text
    tokens, taken = variables["original"][0].numpy(), variables["checkpoint"]
    assert find_blocks(tokens, taken.markup)[3].memento_start == variables["memento"].start
    assert not np.array_equal(variables["original"][:, variables["answer"]], variables["donor"][:, variables["answer"]])
