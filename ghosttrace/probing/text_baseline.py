"""The text baseline: what the retained tokens tell about a secret, read as text.

Whoever holds the cache can also read the text and see, from the positions, how much was erased where.
So the baseline gets every retained token by its place in its segment (prompt, each memento, what comes
behind), the n-grams of each segment, and the length of every gap. A probe of keys and values is then
worth what it adds to this. Where the posterior given the text is known exactly, that takes its place.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict

from ghosttrace.data.task import Task
from ghosttrace.law.expiry import NEVER, expiry
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.split import Split

INVERSE_PENALTIES = (0.003, 0.03, 0.3)
N_FOLDS = 5
MARGINAL_SHARE = 1e-3  # share of the marginals mixed into every text posterior: no label is ever thought impossible
NGRAM_SIZES = (1, 2, 3)


def retained_tokens(checkpoint: Checkpoint, task: Task) -> list[tuple[np.ndarray, np.ndarray]]:
    """What stays of each trace.

    Returns:
        For each trace the tokens that are never erased and their places, int64[R] each.
    """
    found = []
    for sample in task.samples:
        ids = np.asarray(sample.ids)
        places = np.flatnonzero(expiry(ids, checkpoint.markup, checkpoint.policy) == NEVER)
        found.append((ids[places], places))
    return found


def text_features(
    texts: Sequence[tuple[np.ndarray, np.ndarray]], blocks: Sequence[int], train: np.ndarray
) -> csr_array:
    """One-hot tokens by segment and place, n-grams by segment, and gaps.

    Args:
        texts: what `retained_tokens` gives.
        blocks: for each trace the pair that holds the secret, from which segments are counted.
        train: which traces the vocabulary is made of; what only one of them shows is left out.

    Returns:
        float[N, V], zeros and ones.
    """
    keys = [(block, *map(bytes, text)) for block, text in zip(blocks, texts, strict=True)]
    which = {key: number for number, key in enumerate(dict.fromkeys(keys))}  # traces of one base read alike
    document = np.array([which[key] for key in keys])
    first = np.unique(document, return_index=True)[1]
    documents = [list(_words(tokens, places, blocks[row])) for row in first for tokens, places in [texts[row]]]
    counter = CountVectorizer(analyzer=lambda number: documents[number], binary=True, dtype=np.float64)
    found = csr_array(counter.fit_transform(range(len(documents))))
    times = np.bincount(document[train], minlength=len(documents)) @ found  # in how many training traces
    return found[:, np.flatnonzero(times > 1)][document]


def _words(tokens: np.ndarray, places: np.ndarray, block: int) -> Iterator[str]:
    """What the baseline knows of one retained text."""
    cuts = np.flatnonzero(np.diff(places) > 1) + 1
    for number, segment in enumerate(np.split(np.arange(len(tokens)), cuts)):
        here = number - block
        ids = tokens[segment].tolist()
        if number:
            yield f"{here} gap {places[segment[0]] - places[segment[0] - 1]}"
        yield from (f"{here} at {place} {token}" for place, token in enumerate(ids))
        yield from (f"{here} from end {place} {token}" for place, token in enumerate(reversed(ids)))
        for n in NGRAM_SIZES:
            yield from (f"{here} {ids[k : k + n]}" for k in range(len(ids) - n + 1))


def log_marginals(labels: np.ndarray, n_classes: int, train: np.ndarray) -> np.ndarray:
    """float[C], natural logarithms: how often each class occurs in training, every one seen once more."""
    known = labels[train]
    counts = np.bincount(known[known >= 0], minlength=n_classes) + 1.0
    return np.log(counts / counts.sum())


def fit_text_posterior(features: csr_array, labels: np.ndarray, n_classes: int, split: Split) -> np.ndarray:
    """What the text says of one target, by logistic regression chosen on validation.

    Args:
        features: of `text_features`.
        labels: int[N], -1 where the target does not apply.
        n_classes: C.
        split: training traces get the posterior of a fit that has not seen their cluster, so that a
            probe put on top meets the same surprise there as on the test.

    Returns:
        float[N, C], natural logarithms; the marginals where the text adds nothing to them.
    """
    base = log_marginals(labels, n_classes, split.train)
    best = np.tile(base, (len(labels), 1))
    train = split.train[labels[split.train] >= 0]
    check = split.validation[labels[split.validation] >= 0]
    if features.nnz == 0 or len(np.unique(split.cluster[train])) < N_FOLDS or len(np.unique(labels[train])) < 2:
        return best
    least, chosen = -best[check, labels[check]].mean(), None
    for strength in INVERSE_PENALTIES:
        fitted = LogisticRegression(C=strength, max_iter=300).fit(features[train], labels[train])
        posterior = _mixed(fitted.predict_proba(features), fitted.classes_, base)
        loss = -posterior[check, labels[check]].mean()
        if loss < least:
            least, chosen, best = loss, fitted, posterior
    if chosen is not None:
        folds = GroupKFold(N_FOLDS)
        probability = cross_val_predict(
            chosen, features[train], labels[train], groups=split.cluster[train], cv=folds, method="predict_proba"
        )
        best[train] = _mixed(probability, chosen.classes_, base)
    return best


def _mixed(probability: np.ndarray, classes: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Logarithms of a posterior over all classes, a little of the marginals mixed in."""
    full = np.zeros((len(probability), len(base)))
    full[:, classes] = probability
    return np.asarray(np.log((1 - MARGINAL_SHARE) * full + MARGINAL_SHARE * np.exp(base)))
