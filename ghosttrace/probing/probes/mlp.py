"""The MLP probe of the Memento paper: three hidden layers shared by all targets, and one linear head per target.

The hidden layers have 512, 256 and 128 units (arXiv 2604.09852, section 6.2.2). The heads are initialised to zero, so
that training starts at the offset. After training they are calibrated on validation, so that a head that learned
nothing predicts the offset.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from ghosttrace.errors import UserError
from ghosttrace.probing.evidence import ProbeTarget
from ghosttrace.probing.fitter_utils import base_logits, calibrate, moments, standardised
from ghosttrace.probing.probes.probe import Probe, split_by_target, stack_targets
from ghosttrace.probing.split import Split

HIDDEN_WIDTHS = (512, 256, 128)

Layers = tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True)
class MLP(Probe):
    """The MLP probe of the Memento paper, with the text baseline as its offset."""

    name = "mlp"

    def fit(
        self, features: Tensor, targets: Sequence[ProbeTarget], split: Split, seed: int, device: torch.device
    ) -> list[np.ndarray]:
        """Fit one MLP for all targets; see `Probe.fit`."""
        labels, offset, n_classes = stack_targets(targets)
        features, labels, offset = features.to(device), labels.to(device), offset.to(device)
        train, validation = (torch.from_numpy(part).to(device) for part in (split.train, split.validation))
        fitted = fit_mlp(features, labels, n_classes, train, validation, offset, seed)
        return split_by_target(fitted.log_probabilities(features, offset).cpu().double().numpy(), targets)


@dataclass(frozen=True)
class FittedMLP:
    """A trained MLP for one feature set and T targets, standardisation included.

    Attributes:
        mean, scale: float[d], of the features trained on.
        layers: Weight, float[out, in], and bias, float[out], of each layer; the last one has T * C outputs.
        n_classes: Number of classes of each target; C is their maximum.
        alpha: float[T], calibrated factor of each head's logits; 0 for a head that learned nothing.
    """

    mean: Tensor
    scale: Tensor
    layers: Layers
    n_classes: tuple[int, ...]
    alpha: Tensor

    def log_probabilities(self, features: Tensor, offset: Tensor | None = None) -> Tensor:
        """Return the predicted log-probabilities, float[T, N, C]; -inf for classes that a target lacks.

        Args:
            features: float[N, d].
            offset: float[T, N, C], natural-log probabilities added to the logits.
        """
        base = base_logits(offset, self.n_classes, features.device).permute(2, 0, 1)
        x = standardised(features, self.mean, self.scale)
        logits = _forward(self.layers, x, len(self.n_classes)) * self.alpha[:, None]
        return (logits + base).log_softmax(-1).transpose(0, 1)


def fit_mlp(
    features: Tensor,
    labels: Tensor,
    n_classes: Sequence[int],
    train: Tensor,
    validation: Tensor,
    offset: Tensor | None = None,
    seed: int = 0,
    epochs: int = 60,
    patience: int = 5,
    batch: int = 256,
    rate: float = 1e-3,
    decay: float = 0.01,
) -> FittedMLP:
    """Train an MLP probe with AdamW and early stopping on validation.

    The result is deterministic on a given device. The global random state of torch is not used or changed.

    Args:
        features: float[N, d], on the device to train on.
        labels: int64[T, N]; -1 where a label is missing.
        n_classes: Number of classes of each target.
        train: int64, samples to train on.
        validation: int64, samples for early stopping and calibration.
        offset: float[T, N, C], natural-log probabilities added to the logits.
        seed: Random seed of the weights and of the order of samples.
        epochs: Maximum number of epochs.
        patience: Number of epochs without a lower validation loss before training stops.
        batch: Number of samples per step.
        rate: Learning rate.
        decay: Weight decay.

    Returns:
        The calibrated probe of the epoch with the lowest validation loss.

    Raises:
        UserError: Features or offset are not finite, or `train` or `validation` has no labelled sample.
    """
    device, targets, width = features.device, len(n_classes), max(n_classes)
    labels, train, validation = (part.to(device) for part in (labels, train, validation))
    if not ((labels[:, train] >= 0).any() and (labels[:, validation] >= 0).any()):
        raise UserError("an MLP needs labelled samples in both train and validation: give at least one in each")
    train = train[(labels[:, train] >= 0).any(0)]
    mean, scale = moments(features[train])
    x = standardised(features, mean, scale)
    base = base_logits(offset, n_classes, device).permute(2, 0, 1).expand(len(x), targets, width)
    generator = torch.Generator().manual_seed(seed)  # on the CPU, for the same weights and order on every device
    layers = _initial([x.shape[1], *HIDDEN_WIDTHS, targets * width], generator, device)
    optimiser = torch.optim.AdamW([part for layer in layers for part in layer], lr=rate, weight_decay=decay, fused=True)
    best_loss, best_layers, epochs_since_best = torch.inf, _copied(layers), 0
    for _ in range(epochs):
        order = train[torch.randperm(len(train), generator=generator).to(device)]
        for rows in order.split(batch):
            optimiser.zero_grad(set_to_none=True)
            _loss(layers, x[rows], base[rows], labels[:, rows]).backward()
            optimiser.step()
        with torch.no_grad():
            loss = float(_loss(layers, x[validation], base[validation], labels[:, validation]))
        epochs_since_best += 1
        if loss < best_loss:
            best_loss, best_layers, epochs_since_best = loss, _copied(layers), 0
        if epochs_since_best == patience:
            break
    logits = _forward(best_layers, x[validation], targets).permute(1, 2, 0)
    alpha = calibrate(logits, labels[:, validation], base[validation].permute(1, 2, 0))
    return FittedMLP(mean, scale, best_layers, tuple(n_classes), alpha)


def _initial(widths: Sequence[int], generator: torch.Generator, device: torch.device) -> Layers:
    """Initialise the hidden layers as He et al. and the heads with zeros."""
    layers = []
    for n_in, n_out in pairwise(widths):
        weight = torch.randn(n_out, n_in, generator=generator) * (2 / n_in) ** 0.5
        layers.append((weight.to(device), torch.zeros(n_out, device=device)))
    layers[-1] = torch.zeros_like(layers[-1][0]), layers[-1][1]
    return tuple((weight.requires_grad_(), bias.requires_grad_()) for weight, bias in layers)


def _copied(layers: Layers) -> Layers:
    return tuple((weight.detach().clone(), bias.detach().clone()) for weight, bias in layers)


def _forward(layers: Layers, x: Tensor, targets: int) -> Tensor:
    """Return logits, float[N, T, C], of standardised features, float[N, d]."""
    for weight, bias in layers[:-1]:
        x = linear(x, weight, bias).relu()
    return linear(x, *layers[-1]).unflatten(1, (targets, -1))


def _loss(layers: Layers, x: Tensor, base: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy over all labels that are not missing."""
    logits = _forward(layers, x, len(labels)) + base
    return cross_entropy(logits.flatten(0, 1), labels.T.flatten(), ignore_index=-1)
