"""TransformerLens under the law: the states that we read, on every family that it shows them of."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.bridges import LAYOUTS, batch, check_states, checkpoint, example
from helpers.families import FAMILIES, SIZE, tiny
from transformers import HunYuanDenseV1Config, HunYuanDenseV1ForCausalLM

from ghosttrace.bridges import transformer_lens as lens
from ghosttrace.errors import UserError
from ghosttrace.law.markup import find_blocks
from ghosttrace.model import attention
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.states import model_inputs, read_states

pytest.importorskip("transformer_lens", reason="the extra `lens` is not installed")
FUSED = {"phi3", "phi3-window"}  # TransformerLens has no hook on their rotated keys


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - FUSED))
def test_states_equal_ours(family: str, kind: str) -> None:
    check_states(partial(lens.read_states, lens.bridge_of(checkpoint(family))), family, kind)


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_follow_the_law(family: str, kind: str) -> None:
    """On every family, Phi3 and windows included, whatever hooks there are."""
    inputs = model_inputs(batch(kind)[0], tiny(family))
    bridge = lens.bridge_of(checkpoint(family))
    with attention.attending(tiny(family)), lens.attending(bridge), torch.no_grad():
        expected = tiny(family)(**inputs, use_cache=False).logits
        tokens, expiry = inputs.pop("input_ids"), inputs.pop("expiry")
        found, plain = bridge(tokens, expiry=expiry, **inputs), bridge(tokens, **inputs)
    real = inputs["attention_mask"] == 1
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-5)
    assert (plain[real] - expected[real]).abs().max() > 1e-2


@pytest.mark.parametrize("family", sorted(FUSED))
def test_a_hook_that_is_missing_is_named(family: str) -> None:
    """What the message advises works on the same, converted model."""
    bridge = lens.bridge_of(checkpoint(family))
    layouts, places = batch("open")
    with pytest.raises(
        UserError, match=r"no hook blocks\.\{layer\}\.attn\.hook_rot_k in Phi3ForCausalLM: read .*states"
    ):
        lens.read_states(bridge, layouts, places)
    advised, expected = (read_states(model, layouts, places) for model in (bridge.original_model, tiny(family)))
    torch.testing.assert_close(advised.keys, expected.keys, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(advised.values, expected.values, atol=1e-5, rtol=1e-5)


def test_a_hook_that_shows_something_else_is_refused() -> None:
    """HunYuan normalises keys after rotating them, behind the hook point."""
    torch.manual_seed(0)
    model = HunYuanDenseV1ForCausalLM(HunYuanDenseV1Config(**SIZE, head_dim=16)).eval()
    model.config.architectures = [type(model).__name__]
    given = checkpoint("llama")
    bridge = lens.bridge_of(Checkpoint("hunyuan", model, given.tokenizer, given.markup, given.policy))
    with pytest.raises(UserError, match="hook_rot_k does not show what HunYuanDenseV1ForCausalLM caches"):
        lens.read_states(bridge, *batch("open"))


def test_hooks_that_a_bridge_carries_act_and_stay() -> None:
    bridge = lens.bridge_of(checkpoint("llama"))
    layouts, places = batch("open")
    plain = lens.read_states(bridge, layouts, places)
    bridge.add_hook("blocks.1.attn.v.hook_out", lambda values, hook: values * 2)
    for _ in range(2):
        doubled = lens.read_states(bridge, layouts, places)
        assert torch.equal(doubled.values[:1], plain.values[:1]) and torch.equal(doubled.values[1], 2 * plain.values[1])
        assert not torch.equal(doubled.values[2], plain.values[2])


def test_compatibility_mode_is_read_as_well() -> None:
    """TransformerLens renames hook points there, and folds norms into weights."""
    bridge = lens.bridge_of(checkpoint("llama"))
    layouts, places = batch("open")
    bridge.enable_compatibility_mode()
    found, expected = lens.read_states(bridge, layouts, places), read_states(tiny("llama"), layouts, places)
    torch.testing.assert_close(found.keys, expected.keys, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.values, expected.values, atol=1e-5, rtol=1e-5)


def test_everything_is_put_back() -> None:
    """After a pass, after one that a hook breaks off, and after one that stops at a layer."""
    bridge = lens.bridge_of(checkpoint("olmo3"))
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


def test_bad_input_is_answered_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    given = checkpoint("llama")
    with pytest.raises(UserError, match="LlamaForCausalLM is no TransformerBridge"), lens.attending(given.model):
        pass
    with torch.no_grad():
        given.model.model.layers[2].self_attn.v_proj.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="values of layer 2 are not finite"):
        lens.read_states(lens.bridge_of(given), *batch("open"))
    monkeypatch.setitem(sys.modules, "transformer_lens.model_bridge", None)
    for call in (lens.bridge_of, lambda it: lens.attending(it).__enter__()):
        with pytest.raises(UserError, match=r"pip install 'ghosttrace\[lens\]'"):
            call(given)


def test_the_example_patches_a_memento(tmp_path: Path) -> None:
    """The donor's values at the last layer carry the answer; nothing else does."""
    left = example(tmp_path, 0, 1)
    assert left["shares"] == {(layer, kind): float((layer, kind) == (3, "v")) for layer in range(4) for kind in "kv"}
    texts = [set(map(tuple, left[name][:, left["memento"]].tolist())) for name in ("original", "donor")]
    assert texts[0] == texts[1] and len(texts[0]) == 1  # the donor's memento reads the same
    tokens, taken = left["original"][0].numpy(), left["checkpoint"]
    assert find_blocks(tokens, taken.markup)[3].memento_start == left["memento"].start
    assert not np.array_equal(left["original"][:, left["answer"]], left["donor"][:, left["answer"]])
