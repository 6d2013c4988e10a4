"""The paper's MLP probe: three hidden layers, the last a shared trunk of 128 with one head a target.

Paper, section 6.2.2: 512 and 256 hidden units and a bottleneck of 128. The heads start at zero, so that
training starts at the offset, and in the end they are calibrated on validation: a head that learned
nothing answers with the offset.
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
    """The paper's MLP, trained on top of the text."""

    name = "mlp"

    def fit(
        self, features: Tensor, targets: Sequence[ProbeTarget], split: Split, seed: int, device: torch.device
    ) -> list[np.ndarray]:
        labels, offset, n_classes = stack_targets(targets)
        features, labels, offset = features.to(device), labels.to(device), offset.to(device)
        train, validation = (torch.from_numpy(part).to(device) for part in (split.train, split.validation))
        fitted = fit_mlp(features, labels, n_classes, train, validation, offset, seed)
        return split_by_target(fitted.log_probabilities(features, offset).cpu().double().numpy(), targets)


@dataclass(frozen=True)
class FittedMLP:
    """One feature set, T targets, standardisation inside.

    Attributes:
        mean, scale: float[d], of the features trained on.
        layers: weight float[out, in] and bias float[out] of each; the last gives T * C logits.
        n_classes: of each target; C is the largest.
        alpha: float[T], which calibration multiplied the heads by; 0 where they say nothing.
    """

    mean: Tensor
    scale: Tensor
    layers: Layers
    n_classes: tuple[int, ...]
    alpha: Tensor

    def log_probabilities(self, features: Tensor, offset: Tensor | None = None) -> Tensor:
        """Natural logarithms, float[T, N, C]: -inf for classes that a target does not have.

        Args:
            features: float[N, d].
            offset: float[T, N, C], natural-log probabilities to start from.
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
    """Train on some samples, stop by the cross-entropy on others.

    The same arguments give the same probe on the same device; torch's own random state is not touched.

    Args:
        features: float[N, d], on the device to train on.
        labels: int64[T, N]; -1 is missing.
        n_classes: of each target.
        train, validation: int64, samples to train on, and to stop and calibrate by.
        offset: float[T, N, C], natural-log probabilities that the probe adds to.
        seed: of the weights and of the order of samples.
        epochs: at most.
        patience: epochs without improvement on validation before it stops.
        batch, rate, decay: samples a step, learning rate and weight decay of AdamW.

    Raises:
        UserError: features or offset are not finite, or there is nothing to train on or to stop by.
    """
    device, targets, most = features.device, len(n_classes), max(n_classes)
    labels, train, validation = (part.to(device) for part in (labels, train, validation))
    if not ((labels[:, train] >= 0).any() and (labels[:, validation] >= 0).any()):
        raise UserError("an MLP needs labelled samples both to train on and to stop by: give more samples")
    train = train[(labels[:, train] >= 0).any(0)]
    mean, scale = moments(features[train])
    x = standardised(features, mean, scale)
    base = base_logits(offset, n_classes, device).permute(2, 0, 1).expand(len(x), targets, most)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same weights and order on every device
    layers = _initial([x.shape[1], *HIDDEN_WIDTHS, targets * most], generator, device)
    optimiser = torch.optim.AdamW([part for layer in layers for part in layer], lr=rate, weight_decay=decay)
    best, kept, since = torch.inf, _copied(layers), 0
    for _ in range(epochs):
        order = train[torch.randperm(len(train), generator=generator).to(device)]
        for rows in order.split(batch):
            optimiser.zero_grad(set_to_none=True)
            _loss(layers, x[rows], base[rows], labels[:, rows]).backward()
            optimiser.step()
        with torch.no_grad():
            loss = float(_loss(layers, x[validation], base[validation], labels[:, validation]))
        since += 1
        if loss < best:
            best, kept, since = loss, _copied(layers), 0
        if since == patience:
            break
    logits = _forward(kept, x[validation], targets).permute(1, 2, 0)
    alpha = calibrate(logits, labels[:, validation], base[validation].permute(1, 2, 0))
    return FittedMLP(mean, scale, kept, tuple(n_classes), alpha)


def _initial(widths: Sequence[int], generator: torch.Generator, device: torch.device) -> Layers:
    """He's initialisation; the heads are 0."""
    layers = []
    for width, after in pairwise(widths):
        weight = torch.randn(after, width, generator=generator) * (2 / width) ** 0.5
        layers.append((weight.to(device), torch.zeros(after, device=device)))
    layers[-1] = torch.zeros_like(layers[-1][0]), layers[-1][1]
    return tuple((weight.requires_grad_(), bias.requires_grad_()) for weight, bias in layers)


def _copied(layers: Layers) -> Layers:
    return tuple((weight.detach().clone(), bias.detach().clone()) for weight, bias in layers)


def _forward(layers: Layers, x: Tensor, targets: int) -> Tensor:
    """Logits float[N, T, C] of standardised features."""
    for weight, bias in layers[:-1]:
        x = linear(x, weight, bias).relu()
    return linear(x, *layers[-1]).unflatten(1, (targets, -1))


def _loss(layers: Layers, x: Tensor, base: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, the mean over labelled answers."""
    logits = _forward(layers, x, len(labels)) + base
    return cross_entropy(logits.flatten(0, 1), labels.T.flatten(), ignore_index=-1)
