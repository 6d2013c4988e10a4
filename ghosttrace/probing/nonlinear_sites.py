"""Sites of the nonlinear probes of an audit, and the reduction of wide sites.

A secret can be split so that no single layer, and neither the keys nor the values alone, hold any of it; a one-time
pad is an example. An audit therefore fits nonlinear probes at every layer to keys, to values and to both together, and
to adjacent layers and all layers together, whatever the linear probes found. The tokens of a carrier are always read
together, unless they are pooled by mean.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from ghosttrace.probing.carriers import Carrier
from ghosttrace.probing.fitter_utils import moments, standardised
from ghosttrace.probing.site import Kv, ProbeSite

MAX_WIDTH = 1024  # features of a nonlinear probe of one layer and kind of states; wider sites are reduced
REDUCED_WIDTH = 64  # an MLP found pads over keys and values in 64 components, and none of them in all 1,280 features


def nonlinear_sites(carrier: Carrier, layers: Sequence[int], kv: Sequence[Kv]) -> list[ProbeSite]:
    """Return the sites at which an audit fits nonlinear probes to one carrier.

    Args:
        carrier: The carrier.
        layers: Layers of the model, ascending.
        kv: Kinds of states of the sweep.

    Returns:
        Every layer with every kind of states, then the same layers with keys and values together, pairs of adjacent
        layers, and all layers. Joint sites hold keys and values if the sweep reads both.
    """
    joint: Kv = "kv" if "kv" in kv or {"k", "v"} <= set(kv) else kv[0]
    kinds = dict.fromkeys((*kv, joint))
    return [
        *(ProbeSite(carrier, (layer,), kind) for layer in layers for kind in kinds),
        *(ProbeSite(carrier, pair, joint, layers_name=f"{pair[0]}+{pair[1]}") for pair in pairwise(layers)),
        *([ProbeSite(carrier, tuple(layers), joint)] if len(layers) > 2 else []),
    ]


def reduce_width(site: ProbeSite, features: Tensor, train: np.ndarray, seed: int) -> Tensor:
    """Return the features, or their first principal components if the site is joint or wide, fitted on train.

    The features are standardised first, so that a part of the site with large states does not hide the others.

    Args:
        site: The site.
        features: float[N, d], its states.
        train: int64, the training samples.
        seed: Random seed of the decomposition.
    """
    is_joint = len(site.layers) > 1 or site.kv == "kv"
    if features.shape[1] <= (REDUCED_WIDTH if is_joint else MAX_WIDTH):
        return features
    mean, scale = moments(features[train])
    states = standardised(features, mean, scale).cpu().numpy()
    count = min(REDUCED_WIDTH, len(train))
    if not states[train].any():  # constant states, as of delimiters in the first layer, have no components
        return features[:, :count]
    pca = PCA(count, svd_solver="randomized", random_state=seed, iterated_power=1).fit(states[train])
    return torch.from_numpy(pca.transform(states)).to(features)
