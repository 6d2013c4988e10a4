"""Erasing attention and cached states in nnsight.

nnsight runs the model's own forward pass with its hooks. `ghosttrace.attending` therefore also applies inside a trace,
and `model.trace(...)` accepts the argument `expiry`. States are read where a layer passes keys and values to the
attention function: the call `attention_interface_1` in the source of `self_attn`.
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
"""Indices of keys and values, [B, H_kv, T, D], in the arguments of `attention_interface_1`; 1 is the query."""


def _nnsight() -> Any:
    try:
        import nnsight
    except ImportError as error:
        raise UserError("this needs nnsight: pip install -e '.[nnsight]' in the GhostTrace checkout") from error
    return nnsight


def wrap(checkpoint: Checkpoint) -> "NNsight":
    """Wrap a loaded checkpoint in nnsight, without downloading, copying or changing the model.

    Raises:
        UserError: nnsight is not installed.
    """
    return _nnsight().NNsight(checkpoint.model)


@contextmanager
def attending(model: "Envoy") -> Iterator["Envoy"]:
    """Enable the argument `expiry` of `model.trace` inside the context; restore the model on exit.

    `model.trace(input_ids=…, expiry=…)` then accepts int64[B, T], the expiry of each token, in addition to
    `position_ids` and `attention_mask` (see `ghosttrace.attending`). Without `expiry` attention is unchanged.

    Args:
        model: `NNsight(model)`, or a `TransformersModel`, whose weights are loaded if they are not yet.

    Yields:
        The model.

    Raises:
        UserError: nnsight is not installed, `model` is no nnsight model, or `attending` does not support the model
            family.
    """
    if not isinstance(model, _nnsight().Envoy):
        raise UserError(f"{type(model).__name__} is no nnsight model: make one with ghosttrace.bridges.nnsight.wrap")
    if not getattr(model, "dispatched", True):  # the model on the meta device is replaced when its weights are loaded
        model.dispatch()
    with attention.attending(model._module):
        yield model


def read_states(model: "Envoy", layouts: Sequence[Layout], token_indices: Sequence[np.ndarray]) -> States:
    """Read the cached states of a batch at given token indices, in one trace.

    The result equals that of `ghosttrace.model.states.read_states` on the same model.

    Args:
        model: A model as for `attending`.
        layouts: Layouts of B sequences, all open or all sealed.
        token_indices: int64[P] for each sequence, with the same P.

    Returns:
        Keys and values; hidden states are None (read them from the `output` of the layers).

    Raises:
        UserError: The model family has no call `attention_interface_1`, or a state is not finite.
    """
    with attending(model), torch.no_grad():
        inputs, calls = model_inputs(layouts, model._module), attention_calls(model)
        columns = np.stack([layout.columns(indices) for layout, indices in zip(layouts, token_indices, strict=True)])
        columns_on_device = torch.from_numpy(columns).to(model._module.device)
        rows = torch.arange(len(columns_on_device), device=columns_on_device.device)[:, None]
        with model.trace(**inputs, use_cache=False, logits_to_keep=1):
            saved = _nnsight().save([])
            for call in calls:
                arguments = call.inputs[0]
                saved.append(
                    [
                        arguments[argument].transpose(1, 2)[rows, columns_on_device].transpose(1, 2)
                        for argument in (KEY_ARGUMENT, VALUE_ARGUMENT)
                    ]
                )
    states = States(*(torch.stack(kind) for kind in zip(*saved, strict=True)))
    check_finite(states)
    return states


def attention_calls(model: "Envoy") -> list[Any]:
    """Return the attention call of each layer, to read or to set its `inputs` inside a trace.

    Args:
        model: A model as for `attending`.

    Returns:
        One nnsight operation per layer, whose `inputs` are ((module, query, key, value, …), {…}).

    Raises:
        UserError: The model family has no call `attention_interface_1`.
    """
    module = model._module
    try:
        layers = getattr(model, module.base_model_prefix).layers
        return [layer.self_attn.source.attention_interface_1 for layer in layers]
    except AttributeError as error:
        raise UserError(
            f"{type(module).__name__} has no layers[…].self_attn that calls attention_interface: "
            "read its states with ghosttrace.model.states.read_states"
        ) from error
