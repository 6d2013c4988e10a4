"""The law and the cached states in nnsight.

nnsight runs the model's own forward pass, its hooks included, so that `ghosttrace.attending` holds
inside a trace and `expiry` is one more argument of `model.trace(...)`. States are read where a layer
hands keys and values to attention: the call `attention_interface_1` in the source of `self_attn`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ghosttrace.errors import UserError
from ghosttrace.law.layout import Layout
from ghosttrace.model import attention
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.states import States, check_finite, model_inputs

if TYPE_CHECKING:
    from nnsight import Envoy, NNsight

KEY_ARGUMENT, VALUE_ARGUMENT = 2, 3
"""Places of the two among the arguments of `attention_interface_1`, [B, H_kv, T, D] each; 1 is the query."""


def _nnsight() -> Any:
    try:
        import nnsight
    except ImportError as error:
        raise UserError("this needs nnsight: pip install -e '.[nnsight]' in the GhostTrace checkout") from error
    return nnsight


def wrap(checkpoint: Checkpoint) -> "NNsight":
    """A loaded checkpoint in nnsight; nothing is fetched, copied or changed.

    Raises:
        UserError: nnsight is not installed.
    """
    return _nnsight().NNsight(checkpoint.model)


@contextmanager
def attending(model: "Envoy") -> Iterator["Envoy"]:
    """Let traces take `expiry`, and attend by it; everything is put back on exit.

    Inside, `model.trace(input_ids=…, expiry=…)` accepts int64[B, T] with one expiry per place, beside
    `position_ids` and `attention_mask` (see `ghosttrace.attending`). Without the argument the model
    attends as it always did.

    Args:
        model: `NNsight(model)`, or a `TransformersModel`, whose weights are loaded first if they are not.

    Raises:
        UserError: nnsight is not installed, this is no such model, or the law does not cover the family.
    """
    if not isinstance(model, _nnsight().Envoy):
        raise UserError(f"{type(model).__name__} is no nnsight model: make one with ghosttrace.bridges.nnsight.wrap")
    if not getattr(model, "dispatched", True):  # a model on the meta device is another one than will run
        model.dispatch()
    with attention.attending(model._module):
        yield model


def read_states(model: "Envoy", layouts: Sequence[Layout], token_indices: Sequence[np.ndarray]) -> States:
    """Read the cached states of a batch at chosen places, in one trace.

    Equal to `ghosttrace.model.states.read_states` of the same model.

    Args:
        model: as `attending` takes it.
        layouts: of B sequences, all open or all sealed.
        token_indices: for each int64[P], token_indices in its sequence; P is the same for all.

    Returns:
        Keys and values; hidden states are None (the layers' `output` has them).

    Raises:
        UserError: the family does not hand keys and values to such a call, or a state is not finite.
    """
    with attending(model), torch.no_grad():
        inputs, calls = model_inputs(layouts, model._module), attention_calls(model)
        columns = np.stack([layout.columns(at) for layout, at in zip(layouts, token_indices, strict=True)])
        at = torch.from_numpy(columns).to(model._module.device)
        rows = torch.arange(len(at), device=at.device)[:, None]
        with model.trace(**inputs, use_cache=False, logits_to_keep=1):
            found = _nnsight().save([])
            for call in calls:
                arguments = call.inputs[0]
                found.append(
                    [
                        arguments[which].transpose(1, 2)[rows, at].transpose(1, 2)
                        for which in (KEY_ARGUMENT, VALUE_ARGUMENT)
                    ]
                )
    states = States(*(torch.stack(kind) for kind in zip(*found, strict=True)))
    check_finite(states)
    return states


def attention_calls(model: "Envoy") -> list[Any]:
    """For each layer the call whose `inputs` are ((module, query, key, value, …), {…}), to read and to set.

    Raises:
        UserError: the family has no such call.
    """
    family = model._module
    try:
        layers = getattr(model, family.base_model_prefix).layers
        return [layer.self_attn.source.attention_interface_1 for layer in layers]
    except AttributeError as error:
        raise UserError(
            f"{type(family).__name__} has no layers[…].self_attn that calls attention_interface: "
            "read its states with ghosttrace.model.states.read_states"
        ) from error
