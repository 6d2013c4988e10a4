"""`collision`: recompute the cache from every candidate block, and compare it with the retained cache.

This attack is a white-box upper bound. The attacker knows the whole trace except one block, and has a short list of
candidates for that block, the true one among them. The candidates are blocks of other traces that have the same length
and exactly the same memento, so that the retained text does not distinguish them. The attacker runs each candidate
through the model under the defence, except for the defence's random noise, and compares the keys and values that the
defence retains of the block-memento pair: those of the memento, and those of the delimiters if they are kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from ghosttrace.ablation.arms import Arm, Restart
from ghosttrace.auditing.attacks.attack import Attack
from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.defended_caches import read_retained_states, run_session
from ghosttrace.auditing.evidence import AttackSite, Evidence, mean_estimate, one_row_per_cluster, rate_estimate
from ghosttrace.auditing.threats import INSIDER
from ghosttrace.data.task import Sample
from ghosttrace.law.expiry import MementoLaw, erasures, expiry
from ghosttrace.law.markup import find_blocks
from ghosttrace.model.attention import attending
from ghosttrace.model.states import States
from ghosttrace.probing.carriers import divide
from ghosttrace.probing.features import secret_expires_at
from ghosttrace.probing.places import erased_texts

BLOCK_SECRET = "block"  # the name of the secret in the results: the whole block
N_CANDIDATES = 4  # candidate blocks per case, the true one included
MAX_CASES = 120  # cases of validation, and of test
CASES_PER_BATCH = 32
ROUNDING_MARGIN = 4.0  # distances up to this multiple of the largest rounding error count as 0


@dataclass(frozen=True)
class CollisionCase:
    """One trace with the candidates for its block; the true block comes first.

    Attributes:
        row: Row number of the trace in the task.
        ids: `N_CANDIDATES` token-id lists, each ending where the block is erased.
        indices: int64[P], token indices that the defence retains of the block-memento pair.
    """

    row: int
    ids: list[list[int]]
    indices: np.ndarray


def find_collision_cases(context: AuditContext, split_rows: np.ndarray) -> list[CollisionCase]:
    """Return cases for the traces with enough candidates: texts of the same length with the same memento, if any.

    Args:
        context: Context of the audit.
        split_rows: int64[n], row numbers of the traces, such as those of the test split.
    """
    samples = context.task.samples
    rng = np.random.default_rng([context.settings.seed, 0xC011])
    rows_of_split = split_rows.tolist()
    hidden = dict(zip(rows_of_split, _hidden_texts(context, rows_of_split), strict=True))
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, text in hidden.items():
        groups.setdefault((len(text.tokens), *text.summary), []).append(row)
    cases = []
    for rows in groups.values():
        for row in rows:
            text, ids = hidden[row], list(samples[row].ids)
            contents = {tuple(ids[text.tokens.start : text.tokens.stop]): None}
            for other in rng.permutation(rows)[: 4 * N_CANDIDATES].tolist():
                tokens = hidden[other].tokens
                contents[tuple(samples[other].ids[tokens.start : tokens.stop])] = None
            if len(contents) >= N_CANDIDATES and len(text.compared):
                before, after = ids[: text.tokens.start], ids[text.tokens.stop : text.end]
                sequences = [before + list(content) + after for content in list(contents)[:N_CANDIDATES]]
                cases.append(CollisionCase(row, sequences, text.compared))
    return [cases[number] for number in rng.permutation(len(cases))[:MAX_CASES]]


@dataclass(frozen=True)
class HiddenText:
    """The text that the attacker does not know.

    Attributes:
        tokens: Token indices of the text.
        summary: Token ids of its memento, with which a candidate must agree; empty under other laws than Memento's.
        end: Number of tokens up to its erasure.
        compared: int64[P], token indices whose retained states the attacker compares.
    """

    tokens: range
    summary: tuple[int, ...]
    end: int
    compared: np.ndarray


def _hidden_texts(context: AuditContext, rows: Sequence[int]) -> list[HiddenText]:
    """Return the block with the secret of each trace, or the turn of a chat, and what the cache retains beside it."""
    checkpoint, samples = context.checkpoint, [context.task.samples[row] for row in rows]
    if isinstance(checkpoint.law, MementoLaw):
        return [_hidden_block(context, sample) for sample in samples]
    texts = []
    for sample, trace in zip(samples, divide(checkpoint, samples), strict=True):
        (tokens, *_), end = erased_texts(checkpoint, sample), secret_expires_at(checkpoint, sample)
        at_once = (expiry(sample.ids, checkpoint.law)[tokens.start : tokens.stop] == end).all()
        after = np.asarray(trace.find("after", 0) if at_once else (), dtype=np.int64)  # else the rest is still held
        texts.append(HiddenText(tokens, (), end, after[after < end]))
    return texts


def _hidden_block(context: AuditContext, sample: Sample) -> HiddenText:
    checkpoint, ids = context.checkpoint, sample.ids
    policy, pairs = checkpoint.policy, find_blocks(ids, checkpoint.markup, checkpoint.policy.require_assistant_section)
    pair = pairs[sample.block]
    expires_at = next(each.expires_at for each in erasures(ids, checkpoint.markup, policy) if each.block == pair)
    delimiters_kept = not context.arm.adapt_policy(policy).mask_delimiters
    delimiters = [pair.start, pair.end] if delimiters_kept else []
    return HiddenText(
        range(pair.start + 1, pair.end),
        tuple(ids[pair.end : pair.memento_end + 1]),
        expires_at + policy.keep_last_block_for_answer,
        np.array([*delimiters, *range(pair.memento_start, pair.memento_end + 1)]),
    )


def distances(context: AuditContext, arm: Arm, cases: list[CollisionCase]) -> np.ndarray:
    """Return how far the recomputed states of each candidate are from the retained states.

    Distances within the rounding error are set to 0. The rounding error is measured by computing the true block
    twice, in a batch and alone. Candidates are computed in random order, so that the row within a batch cannot
    distinguish the true block.

    Returns:
        float64[cases, N_CANDIDATES], mean squared distances of keys and values, each relative to its mean square.
    """
    case_distances, rounding_errors = np.empty((len(cases), N_CANDIDATES)), [0.0]
    rng = np.random.default_rng(context.settings.seed)
    with attending(context.checkpoint.model):
        for begin in range(0, len(cases), CASES_PER_BATCH):
            batch = cases[begin : begin + CASES_PER_BATCH]
            retained = _read_pair_states(context, arm, [(case, case.ids[0]) for case in batch])
            order = [(number, candidate) for number in range(len(batch)) for candidate in range(N_CANDIDATES)]
            rng.shuffle(order)
            sequences = [(batch[number], batch[number].ids[candidate]) for number, candidate in order]
            recomputed = _read_pair_states(context, arm.without_noise(), sequences)
            for row, (number, candidate) in enumerate(order):
                case_distances[begin + number, candidate] = _distance(retained[number], recomputed[row])
                if candidate == 0:
                    (alone,) = _read_pair_states(context, arm.without_noise(), [(batch[number], batch[number].ids[0])])
                    rounding_errors.append(_distance(recomputed[row], alone))
    return np.where(case_distances <= ROUNDING_MARGIN * max(rounding_errors), 0.0, case_distances)


def _read_pair_states(
    context: AuditContext, arm: Arm, sequences: list[tuple[CollisionCase, list[int]]]
) -> list[States]:
    """Return the retained states of the block-memento pair of each sequence, [L, H, P, D]."""
    keys = [(context.settings.seed, case.row) for case, _ in sequences]
    session = run_session(context.checkpoint, arm, [ids for _, ids in sequences], keys)
    width = max(len(case.indices) for case, _ in sequences)
    indices = [np.pad(case.indices, (0, width - len(case.indices)), mode="edge") for case, _ in sequences]
    states = read_retained_states(session, indices)
    return [
        States(*(tensor[:, row, :, : len(case.indices)] for tensor in (states.keys, states.values)))
        for row, (case, _) in enumerate(sequences)
    ]


def _distance(reference: States, other: States) -> float:
    """Return the relative mean squared distance of keys and values, [L, H, P, D]; all layers have the same weight."""
    total = 0.0
    for a, b in ((reference.keys, other.keys), (reference.values, other.values)):
        size = a.double().square().mean((1, 2, 3), keepdim=True)
        total += float(((b.double() - a.double()).square() / size).mean())
    return total


def compared_carriers(context: AuditContext) -> str:
    """Return the names of the carriers at which candidates are compared."""
    if not isinstance(context.checkpoint.law, MementoLaw):
        return "after"
    delimiters_kept = not context.arm.adapt_policy(context.checkpoint.policy).mask_delimiters
    return "memento and delimiters" if delimiters_kept else "memento"


def _fit_sharpness(case_distances: np.ndarray) -> float:
    """Fit the factor that turns negative distances into logits of the true block; 0 if distances do not predict it."""
    scale = float(np.mean(case_distances[:, 1:])) or 1.0

    def loss(log_sharpness: float) -> float:
        return -float(log_softmax(-np.exp(log_sharpness) * case_distances / scale, axis=1)[:, 0].mean())

    best = minimize_scalar(loss, bounds=(-12.0, 12.0), method="bounded")
    return float(np.exp(best.x)) / scale if best.fun < np.log(case_distances.shape[1]) - 1e-6 else 0.0


@dataclass(frozen=True)
class CollisionAttack(Attack):
    """Attack that measures how well the true block is picked from its candidates, in bits and as a rate."""

    name = "collision"
    title = "Collision"
    summary = (
        "Candidate blocks are recomputed and their keys and values are compared with the retained ones: the upper "
        "bound for an attacker who reads the cache."
    )
    threat = INSIDER
    units = ("bits", "rate")
    counts_bits = True

    def secrets(self, context: AuditContext) -> tuple[str, ...]:
        return (BLOCK_SECRET,)

    def skip_reason(self, context: AuditContext, secret: str) -> str | None:
        split = context.split
        if all(len(find_collision_cases(context, rows)) >= N_CANDIDATES for rows in (split.validation, split.test)):
            return None
        return "too few traces share the block length and the exact memento, so that candidate blocks are missing"

    def n_gated(self, context: AuditContext) -> int:
        return 1  # also if too few candidates are found

    def run(self, context: AuditContext) -> list[Evidence]:
        validation_cases, test_cases = (
            find_collision_cases(context, rows) for rows in (context.split.validation, context.split.test)
        )
        if min(len(validation_cases), len(test_cases)) < N_CANDIDATES:
            return []
        evidence = []
        for condition, arm in (("open", context.arm), ("sealed", Restart())):
            sharpness = _fit_sharpness(distances(context, arm, validation_cases))
            evidence += self._findings(context, condition, sharpness, test_cases, distances(context, arm, test_cases))
        return evidence

    def _findings(
        self,
        context: AuditContext,
        condition: str,
        sharpness: float,
        test_cases: list[CollisionCase],
        case_distances: np.ndarray,
    ) -> list[Evidence]:
        """Return bits and rate of one condition from the distances of the test cases, float[cases, N_CANDIDATES]."""
        cluster = context.split.cluster[np.array([case.row for case in test_cases])]
        max_bits = float(np.log2(N_CANDIDATES))
        values = max_bits + log_softmax(-sharpness * case_distances, axis=1)[:, 0] / np.log(2)
        gate = condition == "open"
        estimate = mean_estimate(values, cluster, context.alpha if gate else 0.05, max_bits)
        site, n = AttackSite(compared_carriers(context), 0, "all", "kv", "all"), len(test_cases)
        note = f"of {N_CANDIDATES} candidate blocks"
        true_is_nearest = np.all(case_distances[:, :1] < case_distances[:, 1:], axis=1)
        rows = one_row_per_cluster(np.arange(n), cluster, context.settings.seed)
        rate = rate_estimate(int(true_is_nearest[rows].sum()), len(rows))
        return [
            self.evidence(BLOCK_SECRET, condition, "bits", estimate, n, gate=gate, site=site, note=note),
            self.evidence(
                BLOCK_SECRET, condition, "rate", rate, len(rows), baseline=1 / N_CANDIDATES, site=site, note=note
            ),
        ]
