"""The text baseline: predicts a secret from the retained text alone.

An attacker with the cache can also read the text, and see from the positions how many tokens were erased where. The
features of the baseline are therefore every retained token by its index in its segment (prompt, each memento, text
after the last memento), the n-grams of each segment, the length of every gap, and positions and lengths as numbers,
so that a length that no training trace has is read by its neighbours. The result of a probe of keys and values is its
gain over this baseline. If the exact posterior given the text is known, it is used as the baseline.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import csr_array, hstack
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict

from ghosttrace.data.task import Task
from ghosttrace.law.expiry import NEVER, MementoLaw, expiry
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.split import Split

INVERSE_PENALTIES = (0.003, 0.03, 0.3)
N_FOLDS = 5
MARGINAL_SHARE = 1e-3  # weight of the marginals in every text posterior, so that no class has probability 0
NGRAM_SIZES = (1, 2, 3)


def retained_tokens(checkpoint: Checkpoint, task: Task) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the retained tokens of each trace.

    Under Memento's law these are the tokens that are never erased. Under any other law a token may leave after its
    states have been read, so all tokens count that are held when the secret has left, or come later.

    Returns:
        For each trace the ids of these tokens, int64[R], and their token indices, int64[R].
    """
    texts = []
    for sample in task.samples:
        ids = np.asarray(sample.ids)
        times = expiry(ids, checkpoint.law)
        if isinstance(checkpoint.law, MementoLaw):
            indices = np.flatnonzero(times == NEVER)
        else:
            indices = np.flatnonzero(times > times[list(sample.secret_indices)].max())
        texts.append((ids[indices], indices))
    return texts


def task_text_features(checkpoint: Checkpoint, task: Task, train: np.ndarray) -> csr_array:
    """Return `text_features` of the retained text of each trace of a task, float[N, V].

    Args:
        checkpoint: Provides the law.
        task: N traces.
        train: int64, traces that define the vocabulary.
    """
    texts = retained_tokens(checkpoint, task)
    return text_features(texts, segment_numbers(checkpoint, task, texts), train)


def segment_numbers(checkpoint: Checkpoint, task: Task, texts: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[int]:
    """Return, for each trace, the number of the gap that holds its secret: the number of its block under Memento's law.

    Args:
        checkpoint: Provides the law.
        task: N traces.
        texts: The output of `retained_tokens`.
    """
    if isinstance(checkpoint.law, MementoLaw):
        return [sample.block for sample in task.samples]
    numbers = []
    for sample, (_, indices) in zip(task.samples, texts, strict=True):
        starts = np.array([indices[segment[0]] for segment in _segments(indices) if len(segment)])
        numbers.append(int((starts < sample.secret_indices[0]).sum()) - 1)
    return numbers


def text_features(
    texts: Sequence[tuple[np.ndarray, np.ndarray]], blocks: Sequence[int], train: np.ndarray
) -> csr_array:
    """Return features of N retained texts: tokens by index in their segment, n-grams by segment, and lengths.

    Args:
        texts: The output of `retained_tokens`.
        blocks: The output of `segment_numbers`; segments are numbered relative to it.
        train: int64, traces that define the vocabulary; features found in only one of them are removed.

    Returns:
        float[N, V], zeros and ones, and the standardised columns of `_lengths`.
    """
    keys = [(block, *map(bytes, text)) for block, text in zip(blocks, texts, strict=True)]
    # Traces of one base often have the same retained text; each distinct text is featurised once.
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    document = np.array([numbers[key] for key in keys])
    first = np.unique(document, return_index=True)[1]
    documents = [list(_words(texts[row][0], texts[row][1], blocks[row])) for row in first]
    counter = CountVectorizer(analyzer=lambda number: documents[number], binary=True, dtype=np.float64)
    counts = csr_array(counter.fit_transform(range(len(documents))))
    num_train_traces = np.bincount(document[train], minlength=len(documents)) @ counts  # with each feature
    words = counts[:, np.flatnonzero(num_train_traces > 1)][document]
    lengths = _standardised([_lengths(texts[row][1], blocks[row]) for row in first], document, train)
    return csr_array(hstack([words, lengths[document]]))


def _segments(token_indices: np.ndarray) -> list[np.ndarray]:
    """Return the segments between gaps, each as indices into the retained tokens."""
    return np.split(np.arange(len(token_indices)), np.flatnonzero(np.diff(token_indices) > 1) + 1)


def _lengths(token_indices: np.ndarray, block: int) -> dict[str, float]:
    """Return position and length of every segment, and length of the gap before it, each with its logarithm."""
    lengths = {}
    for number, segment in enumerate(_segments(token_indices)):
        if not len(segment):
            continue
        start, end = token_indices[segment[0]], token_indices[segment[-1]] + 1
        values = {"start": start, "length": end - start}
        if number:
            values["gap"] = start - token_indices[segment[0] - 1]
        for name, value in values.items():
            lengths[f"{number - block} {name}"] = float(value)
            lengths[f"{number - block} log {name}"] = float(np.log1p(value))
    return lengths


def _standardised(rows: Sequence[dict[str, float]], document: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Return numbers by name as columns with mean 0 and deviation 1 over training traces, 0 where a text lacks them.

    Args:
        rows: For each of D distinct texts its numbers.
        document: int64[N], the text of each trace.
        train: int64, the training traces.

    Returns:
        float[D, L]; a column that is constant on train is 0.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    table = np.array([[row.get(name, np.nan) for name in names] for row in rows]).reshape(len(rows), len(names))
    seen = np.ma.masked_invalid(table[document[train]])
    mean, deviation = (np.ma.filled(moment, 0.0) for moment in (seen.mean(0), seen.std(0)))
    columns = np.nan_to_num((table - mean) / np.where(deviation > 0, deviation, np.inf))
    return np.asarray(columns)


def _words(tokens: np.ndarray, token_indices: np.ndarray, block: int) -> Iterator[str]:
    """Yield the names of the features that one retained text has."""
    for number, segment in enumerate(_segments(token_indices)):
        relative = number - block
        ids = tokens[segment].tolist()
        if number:
            yield f"{relative} gap {token_indices[segment[0]] - token_indices[segment[0] - 1]}"
        yield from (f"{relative} at {index} {token}" for index, token in enumerate(ids))
        yield from (f"{relative} from end {index} {token}" for index, token in enumerate(reversed(ids)))
        for n in NGRAM_SIZES:
            yield from (f"{relative} {ids[k : k + n]}" for k in range(len(ids) - n + 1))


def log_marginals(labels: np.ndarray, n_classes: int, train: np.ndarray) -> np.ndarray:
    """Return the natural log-probabilities, float[C], of the classes in the training set, with add-one smoothing.

    Args:
        labels: int[N]; -1 where the target does not apply.
        n_classes: C.
        train: int64, the training samples.
    """
    known = labels[train]
    counts = np.bincount(known[known >= 0], minlength=n_classes) + 1.0
    return np.log(counts / counts.sum())


def fit_text_posterior(features: csr_array, labels: np.ndarray, n_classes: int, split: Split) -> np.ndarray:
    """Predict one target from the text by logistic regression, with the penalty chosen on validation.

    Training samples are predicted by cross-fitting, by a fit without their cluster. The baseline is then as accurate
    on train as on test, and a probe can be fitted on top of it.

    Args:
        features: The output of `text_features`.
        labels: int[N]; -1 where the target does not apply.
        n_classes: C.
        split: Train, validation and test samples.

    Returns:
        float[N, C], natural log-probabilities; the class frequencies if the text does not improve on them.
    """
    base = log_marginals(labels, n_classes, split.train)
    best = np.tile(base, (len(labels), 1))
    train = split.train[labels[split.train] >= 0]
    validation = split.validation[labels[split.validation] >= 0]
    if features.nnz == 0 or len(np.unique(split.cluster[train])) < N_FOLDS or len(np.unique(labels[train])) < 2:
        return best
    best_loss, chosen = -best[validation, labels[validation]].mean(), None
    for inverse_penalty in INVERSE_PENALTIES:
        fitted = LogisticRegression(C=inverse_penalty, max_iter=300).fit(features[train], labels[train])
        posterior = _mixed(fitted.predict_proba(features), fitted.classes_, base)
        loss = -posterior[validation, labels[validation]].mean()
        if loss < best_loss:
            best_loss, chosen, best = loss, fitted, posterior
    if chosen is not None:
        folds = GroupKFold(N_FOLDS)
        probability = cross_val_predict(
            chosen, features[train], labels[train], groups=split.cluster[train], cv=folds, method="predict_proba"
        )
        best[train] = _mixed(probability, chosen.classes_, base)
    return best


def _mixed(probability: np.ndarray, classes: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Extend probabilities of the fitted classes to all classes, mix in the marginals, and return logarithms."""
    full = np.zeros((len(probability), len(base)))
    full[:, classes] = probability
    return np.asarray(np.log((1 - MARGINAL_SHARE) * full + MARGINAL_SHARE * np.exp(base)))
