"""What all probes share, and the fitters for one feature set and one question.

A fitter makes a frozen probe. Standardisation is part of the probe: mean and scale of the features it
was fitted on. A probe answers with natural-log probabilities and adds to its own logits an *offset*,
the log probabilities that something else (the text) already gives; calibrated, it falls back on the
offset where the features say nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor
from torch.nn.functional import one_hot

from ghosttrace.errors import UserError

EXCLUDED = -100.0  # nats: what an offset of -inf becomes, so that a label the text excludes costs much, not everything
HIGHEST = 4.0  # of alpha: by how much a probe may be sharpened
STEEPEST = 1000.0  # of ridge scores, which lie in about [0, 1]


@dataclass(frozen=True)
class Probe:
    """Linear in one standardised feature set, for one question.

    Attributes:
        mean, scale: float[d], of the features fitted on.
        weight: float[d, C].
        bias: float[C].
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def log_probabilities(self, features: Tensor, offset: Tensor | None = None) -> Tensor:
        """Natural logarithms, float[N, C], for features float[N, d] and an offset float[N, C]."""
        logits = standardised(features, self.mean, self.scale) @ self.weight + self.bias
        return (logits if offset is None else logits + offset.clamp(min=EXCLUDED)).log_softmax(-1)


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
        the fitters compute. What the offset excludes gets `EXCLUDED` nats.

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
        base = offset.to(device).float().clamp(min=EXCLUDED).transpose(1, 2).contiguous()
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


def calibrate(logits: Tensor, labels: Tensor, base: Tensor, highest: float = HIGHEST) -> Tensor:
    """The alpha in [0, highest] that minimises the cross-entropy of `softmax(base + alpha * logits)`.

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

    low, high = torch.zeros_like(target), torch.full_like(target, highest)
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


def fit_logistic(features: Tensor, labels: Tensor, n_classes: int, penalty: float, tolerance: float = 1e-4) -> Probe:
    """Softmax regression by scikit-learn: the reference that `grid.fit_grid` is held to.

    Minimises `mean cross-entropy + penalty / 2 * |weight|^2`, the intercept free; in scikit-learn's
    terms `C = 1 / (N * penalty)`. A class that no label names gets weight 0 and bias `log(1 / 2N)`.

    Args:
        features: float[N, d].
        labels: int64[N]; -1 is missing.
        n_classes: C.
        penalty: greater than 0.
        tolerance: scikit-learn's, on the largest component of the gradient.

    Raises:
        UserError: features are not finite, or fewer than two classes are labelled.
    """
    mean, scale = moments(features)
    known = labels >= 0
    x, y = standardised(features, mean, scale)[known].cpu().numpy(), labels[known].cpu().numpy()
    if len(set(y.tolist())) < 2:
        raise UserError("logistic regression needs labels of at least two classes: give more samples")
    model = LogisticRegression(C=1 / (len(y) * penalty), tol=tolerance, max_iter=10_000).fit(x, y)
    weight, bias = torch.from_numpy(model.coef_).float().T, torch.from_numpy(model.intercept_).float()
    if len(model.classes_) == 2:  # scikit-learn keeps the difference of the two
        weight, bias = torch.cat([-weight, weight], 1) / 2, torch.cat([-bias, bias]) / 2
    present = torch.from_numpy(model.classes_)
    shares = torch.from_numpy(y).bincount(minlength=n_classes).clamp(min=0.5).div(len(y)).log()
    # scikit-learn's intercepts sum to 0; these are on the scale of log frequencies, for a class that is absent.
    shares[present] = bias + shares[present].mean()
    full = torch.zeros(features.shape[1], n_classes).index_copy_(1, present, weight)
    return Probe(mean, scale, full.to(features.device), shares.to(features.device))


def fit_ridge(
    features: Tensor,
    labels: Tensor,
    n_classes: int,
    penalty: float,
    held: tuple[Tensor, Tensor],
    offset: Tensor | None = None,
) -> Probe:
    """Ridge regression on one-hot labels by scikit-learn; its scores become logits at a fitted temperature.

    Minimises `mean |one-hot - x W - b|^2 + penalty * |W|^2`. The probe is
    `softmax(offset + t * x W)`, where without an offset the log class frequencies stand for it, and t
    minimises the cross-entropy on held-out samples; t = 0 where the features say nothing.

    Args:
        features: float[N, d].
        labels: int64[N]; -1 is missing.
        n_classes: C.
        penalty: greater than 0.
        held: features and labels that choose the temperature.
        offset: float[M, C], of the held-out samples.

    Raises:
        UserError: features are not finite, or no sample is labelled.
    """
    mean, scale = moments(features)
    known = labels >= 0
    if not known.any():
        raise UserError("ridge regression needs labels, and no sample has one: give more samples")
    x, hits = standardised(features, mean, scale)[known], one_hot(labels[known], n_classes).float()
    model = Ridge(alpha=len(x) * penalty).fit(x.cpu().numpy(), hits.cpu().numpy())
    weight = torch.from_numpy(model.coef_).to(features.device, torch.float32).T
    prior = hits.sum(0).clamp(min=0.5).div(len(x)).log()
    scores = standardised(held[0], mean, scale) @ weight
    base = prior.expand(len(scores), -1) if offset is None else offset.to(prior)
    alpha = calibrate(scores.T, held[1], base.clamp(min=EXCLUDED).T, STEEPEST)
    return Probe(mean, scale, alpha * weight, prior if offset is None else torch.zeros_like(prior))
