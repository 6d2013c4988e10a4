"""What the fitters share: standardised features, offsets, cross-entropy and calibration.

A fitted probe is frozen, and standardisation is part of it: mean and scale of the features it was fitted
on. It answers with natural-log probabilities and adds to its own logits an *offset*, the log probabilities
that something else (the text) already gives; calibrated, it falls back on the offset where the features
say nothing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ghosttrace.errors import UserError

EXCLUDED_LOG_PROB = (
    -100.0
)  # nats: what an offset of -inf becomes, so that a label the text excludes costs much, not everything
MAX_CALIBRATION_ALPHA = 4.0  # of alpha: by how much a probe may be sharpened


def check_finite(features: Tensor) -> None:
    """Refuse features, float[N, d] or float[F, N, d], that no probe can be fitted on.

    Raises:
        UserError: NaN or infinity; where there are several feature sets, the first bad one is named.
    """
    if features.ndim == 2:
        features = features[None]
    # A sum is finite only if all its terms are, and is quicker to look at.
    suspects = (~features.sum(1, dtype=torch.float32).isfinite().all(1)).nonzero().flatten().tolist()
    for number in suspects:
        if not features[number].isfinite().all():
            what = f"feature set {number}" if len(features) > 1 else "a feature"
            raise UserError(f"{what} holds NaN or infinity: read the states in float32 or bfloat16, and check them")


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over samples, float[..., d]; a constant feature gets scale 1."""
    mean = features.mean(-2, dtype=torch.float32)
    scale = (features - mean.unsqueeze(-2)).square_().mean(-2).sqrt_()
    # Rounding leaves a constant feature a little spread.
    return mean, torch.where(scale > 1e-6 * mean.abs(), scale, 1.0)


def standardised(features: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """float32[..., N, d] with mean 0 and deviation 1 where they were fitted; finite or refused."""
    check_finite(features)
    return (features - mean.unsqueeze(-2)).div_(scale.unsqueeze(-2))


def base_logits(offset: Tensor | None, n_classes: Sequence[int], device: torch.device) -> Tensor:
    """What is added to the logits of T targets: the offset, and -inf for classes that do not exist.

    Args:
        offset: float[T, N, C], or None for none.
        n_classes: of each target; C is the largest, if no offset says more.
        device: where the features are.

    Returns:
        float32[T, C, N], or [T, C, 1] without an offset; classes before samples, which is how
        the fitters compute. What the offset excludes gets `EXCLUDED_LOG_PROB` nats.

    Raises:
        UserError: the offset holds NaN or +infinity.
    """
    most = max(n_classes) if offset is None else offset.shape[2]
    if offset is not None and not (offset < torch.inf).all():
        raise UserError("the offset holds NaN or +infinity: give natural logarithms of probabilities")
    missing = torch.arange(most, device=device) >= torch.tensor(n_classes, device=device)[:, None]
    if offset is None:
        base = torch.zeros(len(n_classes), most, 1, device=device)
    else:
        base = offset.to(device).float().clamp(min=EXCLUDED_LOG_PROB).transpose(1, 2).contiguous()
    return base.masked_fill_(missing[:, :, None], -torch.inf)


def cross_entropy(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Mean -log p(label) over labelled samples, in nats.

    Args:
        log_probabilities: float[..., N, C].
        labels: int64[..., N]; -1 is missing.

    Returns:
        float32[...]; NaN where nothing is labelled.
    """
    known = labels >= 0
    chosen = log_probabilities.gather(-1, labels.clamp(min=0)[..., None].expand(*log_probabilities.shape[:-1], 1))[
        ..., 0
    ]
    return -torch.where(known, chosen, 0.0).sum(-1) / known.sum(-1)


def calibrate(logits: Tensor, labels: Tensor, base: Tensor) -> Tensor:
    """The alpha in [0, MAX_CALIBRATION_ALPHA] that minimises the cross-entropy of `softmax(base + alpha * logits)`.

    It is convex in alpha: Newton steps, bisection where they would leave the bracket.

    Args:
        logits: float[..., C, N], of the probe alone, on held-out samples.
        labels: int64[..., N]; -1 is missing. Where nothing is labelled alpha is 0.
        base: what is added, float[..., C, N], as `base_logits` gives it.

    Returns:
        float[...].
    """
    weight = (labels >= 0) / (labels >= 0).sum(-1, keepdim=True).clamp(min=1)
    index = labels.clamp(min=0).unsqueeze(-2).expand(*logits.shape[:-2], 1, -1)
    target = (weight * logits.gather(-2, index).squeeze(-2)).sum(-1)

    def slopes(alpha: Tensor) -> tuple[Tensor, Tensor]:
        p = (base + alpha[..., None, None] * logits).softmax(-2)
        mean = (p * logits).sum(-2)
        return (weight * mean).sum(-1) - target, (weight * ((p * logits.square()).sum(-2) - mean.square())).sum(-1)

    low, high = torch.zeros_like(target), torch.full_like(target, MAX_CALIBRATION_ALPHA)
    alpha = torch.ones_like(target)
    for _ in range(25):
        first, second = slopes(alpha)
        low, high = torch.where(first < 0, alpha, low), torch.where(first < 0, high, alpha)
        newton = alpha - first / second.clamp(min=1e-12)
        inside = (newton >= low) & (newton <= high)
        moved = torch.where(inside, newton, (low + high) / 2)
        if (moved - alpha).abs().max() < 1e-4:
            break
        alpha = moved
    return torch.where(slopes(torch.zeros_like(alpha))[0] >= 0, 0.0, moved)
