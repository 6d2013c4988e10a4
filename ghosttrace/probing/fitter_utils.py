"""Utilities shared by the probe fitters: standardisation, offsets, cross-entropy and calibration.

A fitted probe is immutable and includes its standardisation, the mean and scale of the features that it was fitted
on. It predicts natural-log probabilities. It adds to its own logits an *offset*, the log-probabilities of a baseline
such as the text. After calibration it returns the offset where the features add nothing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ghosttrace.errors import UserError

EXCLUDED_LOG_PROB = -100.0  # nats; replaces -inf in an offset, so that losses on excluded labels stay finite
MAX_CALIBRATION_ALPHA = 4.0  # maximum factor of a probe's logits


def check_finite(features: Tensor) -> None:
    """Raise if features, float[N, d] or float[F, N, d], are not finite.

    Raises:
        UserError: A feature is NaN or infinite. With several feature sets, the message names the first bad one.
    """
    if features.ndim == 2:
        features = features[None]
    # A sum is finite only if all its terms are, and one sum per feature is faster to check.
    suspects = (~features.sum(1, dtype=torch.float32).isfinite().all(1)).nonzero().flatten().tolist()
    for number in suspects:
        if not features[number].isfinite().all():
            subject = f"feature set {number}" if len(features) > 1 else "a feature"
            raise UserError(f"{subject} holds NaN or infinity: read the states in float32 or bfloat16")


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over samples, float[..., d] each; a constant feature gets scale 1.

    Args:
        features: float[..., N, d].
    """
    mean = features.mean(-2, dtype=torch.float32)
    scale = (features - mean.unsqueeze(-2)).square_().mean(-2).sqrt_()
    # Rounding gives a constant feature a small non-zero deviation.
    return mean, torch.where(scale > 1e-6 * mean.abs(), scale, 1.0)


def standardised(features: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Return features, float[..., N, d], minus `mean` and divided by `scale`, float[..., d] each.

    Raises:
        UserError: A feature is NaN or infinite.
    """
    check_finite(features)
    return (features - mean.unsqueeze(-2)).div_(scale.unsqueeze(-2))


def base_logits(offset: Tensor | None, n_classes: Sequence[int], device: torch.device) -> Tensor:
    """Return the term added to the logits of T targets: the offset, and -inf for classes that a target lacks.

    Args:
        offset: float[T, N, C], or None.
        n_classes: Number of classes of each target; C is their maximum if there is no offset.
        device: Device of the features.

    Returns:
        float32[T, C, N], or [T, C, 1] without an offset. Classes come before samples, as in the fitters. Values
        below `EXCLUDED_LOG_PROB` nats in the offset are clamped to it.

    Raises:
        UserError: The offset holds NaN or +infinity.
    """
    width = max(n_classes) if offset is None else offset.shape[2]
    if offset is not None and not (offset < torch.inf).all():
        raise UserError("the offset holds NaN or +infinity: give natural logarithms of probabilities")
    missing = torch.arange(width, device=device) >= torch.tensor(n_classes, device=device)[:, None]
    if offset is None:
        base = torch.zeros(len(n_classes), width, 1, device=device)
    else:
        base = offset.to(device).float().clamp(min=EXCLUDED_LOG_PROB).transpose(1, 2).contiguous()
    return base.masked_fill_(missing[:, :, None], -torch.inf)


def cross_entropy(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of -log p(label) over labelled samples, in nats.

    Args:
        log_probabilities: float[..., N, C].
        labels: int64[..., N]; -1 where a label is missing.

    Returns:
        float32[...]; NaN where no sample is labelled.
    """
    known = labels >= 0
    chosen = log_probabilities.gather(-1, labels.clamp(min=0)[..., None].expand(*log_probabilities.shape[:-1], 1))[
        ..., 0
    ]
    return -torch.where(known, chosen, 0.0).sum(-1) / known.sum(-1)


def calibrate(logits: Tensor, labels: Tensor, base: Tensor) -> Tensor:
    """Return the alpha in [0, MAX_CALIBRATION_ALPHA] that minimises the cross-entropy of a scaled probe.

    The prediction is `softmax(base + alpha * logits)`, whose cross-entropy is convex in alpha. The solver takes
    Newton steps, and bisects where a step would leave the bracket.

    Args:
        logits: float[..., C, N], the probe's own logits on held-out samples.
        labels: int64[..., N]; -1 where a label is missing.
        base: float[..., C, N], added to the scaled logits, as returned by `base_logits`.

    Returns:
        float[...]; 0 where no sample is labelled.
    """
    weight = (labels >= 0) / (labels >= 0).sum(-1, keepdim=True).clamp(min=1)
    index = labels.clamp(min=0).unsqueeze(-2).expand(*logits.shape[:-2], 1, -1)
    target = (weight * logits.gather(-2, index).squeeze(-2)).sum(-1)

    def derivatives(alpha: Tensor) -> tuple[Tensor, Tensor]:
        p = (base + alpha[..., None, None] * logits).softmax(-2)
        mean = (p * logits).sum(-2)
        return (weight * mean).sum(-1) - target, (weight * ((p * logits.square()).sum(-2) - mean.square())).sum(-1)

    low, high = torch.zeros_like(target), torch.full_like(target, MAX_CALIBRATION_ALPHA)
    alpha = torch.ones_like(target)
    for _ in range(25):
        first, second = derivatives(alpha)
        low, high = torch.where(first < 0, alpha, low), torch.where(first < 0, high, alpha)
        newton = alpha - first / second.clamp(min=1e-12)
        inside = (newton >= low) & (newton <= high)
        moved = torch.where(inside, newton, (low + high) / 2)
        if (moved - alpha).abs().max() < 1e-4:
            break
        alpha = moved
    return torch.where(derivatives(torch.zeros_like(alpha))[0] >= 0, 0.0, moved)
