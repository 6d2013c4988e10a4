"""`collision`: recompute the cache from every candidate block, and see which comes out the same.

The white-box upper bound: the attacker knows the whole trace but for one block, and has a short list of
what stood in it, the truth among them. Candidates are the blocks of other traces that are as long and have
the very same memento, so that nothing retained tells them apart. The attacker runs each through the model
under the defence, as far as it can be imitated, and compares keys and values wherever the pair leaves any: at
its memento, and at its delimiters where these are kept.
"""

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
from ghosttrace.law.expiry import erasures
from ghosttrace.law.markup import Block, find_blocks
from ghosttrace.model.attention import attending
from ghosttrace.model.states import States

BLOCK_SECRET = "block"  # what it is after
N_CANDIDATES = 4  # the truth included
MAX_CASES = 120  # of validation and of test, at most, each
CASES_PER_BATCH = 32  # cases
ROUNDING_MARGIN = 4.0  # times the largest distance seen between two runs of the same computation: what counts as none


@dataclass(frozen=True)
class CollisionCase:
    """One trace with the blocks that might have been its own, its own first.

    Attributes:
        row: of the task.
        ids: N_CANDIDATES token lists, up to where the block is erased.
        indices: int64[P], what the defence retains of the pair.
    """

    row: int
    ids: list[list[int]]
    indices: np.ndarray


def find_collision_cases(context: AuditContext, part: np.ndarray) -> list[CollisionCase]:
    """Those of some traces for which enough others have the same memento and a block of the same length."""
    at, samples = context.checkpoint, context.task.samples
    rng = np.random.default_rng([context.settings.seed, 0xC011])
    pairs: dict[int, Block] = {}
    groups: dict[tuple[int, ...], list[int]] = {}
    for row in part.tolist():
        ids = samples[row].ids
        pairs[row] = find_blocks(ids, at.markup, at.policy.require_assistant_section)[samples[row].block]
        pair = pairs[row]
        groups.setdefault((pair.end - pair.start, *ids[pair.end : pair.memento_end + 1]), []).append(row)
    cases, kept = [], not context.arm.adapt_policy(at.policy).mask_delimiters
    for rows in groups.values():
        for row in rows:
            pair, ids = pairs[row], list(samples[row].ids)
            end = _erased_at(context, row, pair)
            own = tuple(ids[pair.start + 1 : pair.end])
            contents = {own: None}
            for other in rng.permutation(rows)[: 4 * N_CANDIDATES].tolist():
                theirs = pairs[other]
                contents[tuple(samples[other].ids[theirs.start + 1 : theirs.end])] = None
            if len(contents) >= N_CANDIDATES:
                chosen = list(contents)[:N_CANDIDATES]
                whole = [ids[: pair.start + 1] + list(inside) + ids[pair.end : end] for inside in chosen]
                delimiters = [pair.start, pair.end] if kept else []
                indices = np.array([*delimiters, *range(pair.memento_start, pair.memento_end + 1)])
                cases.append(CollisionCase(row, whole, indices))
    return [cases[place] for place in rng.permutation(len(cases))[:MAX_CASES]]


def _erased_at(context: AuditContext, row: int, pair: Block) -> int:
    gone = erasures(context.task.samples[row].ids, context.checkpoint.markup, context.checkpoint.policy)
    return (
        next(one.expires_at for one in gone if one.block == pair) + context.checkpoint.policy.keep_last_block_for_answer
    )


def distances(context: AuditContext, arm: Arm, cases: list[CollisionCase]) -> np.ndarray:
    """float64[cases, N_CANDIDATES]: mean squared distance of keys and values, each relative to its own size.

    What rounding leaves counts as 0: the true block is run once more by itself, and how far it then is from
    what it was among others says what rounding can do here. Candidates are run in an order of their own, so
    that no place in a batch can tell the truth from the others.
    """
    found, rounding = np.empty((len(cases), N_CANDIDATES)), [0.0]
    rng = np.random.default_rng(context.settings.seed)
    with attending(context.checkpoint.model):
        for begin in range(0, len(cases), CASES_PER_BATCH):
            some = cases[begin : begin + CASES_PER_BATCH]
            real = _read(context, arm, [(case, case.ids[0]) for case in some])
            order = [(place, number) for place in range(len(some)) for number in range(N_CANDIDATES)]
            rng.shuffle(order)
            tries = _read(
                context, arm.without_noise(), [(some[place], some[place].ids[number]) for place, number in order]
            )
            for row, (place, number) in enumerate(order):
                found[begin + place, number] = _distance(real[place], tries[row])
                if number == 0:
                    (alone,) = _read(context, arm.without_noise(), [(some[place], some[place].ids[0])])
                    rounding.append(_distance(tries[row], alone))
    return np.where(found <= ROUNDING_MARGIN * max(rounding), 0.0, found)


def _read(context: AuditContext, arm: Arm, wanted: list[tuple[CollisionCase, list[int]]]) -> list[States]:
    """The pair's retained states in each sequence, [L, H, P, D]."""
    keys = [(context.settings.seed, case.row) for case, _ in wanted]
    session = run_session(context.checkpoint, arm, [ids for _, ids in wanted], keys)
    width = max(len(case.indices) for case, _ in wanted)
    indices = [np.pad(case.indices, (0, width - len(case.indices)), mode="edge") for case, _ in wanted]
    states = read_retained_states(session, indices)
    return [
        States(*(part[:, row, :, : len(case.indices)] for part in (states.keys, states.values)))
        for row, (case, _) in enumerate(wanted)
    ]


def _distance(real: States, tried: States) -> float:
    """Of keys and values, [L, H, P, D] each; each layer's states weigh the same."""
    found = 0.0
    for a, b in ((real.keys, tried.keys), (real.values, tried.values)):
        size = a.double().square().mean((1, 2, 3), keepdim=True)
        found += float(((b.double() - a.double()).square() / size).mean())
    return found


def compared_carriers(context: AuditContext) -> str:
    """Where candidates are compared, in words."""
    kept = not context.arm.adapt_policy(context.checkpoint.policy).mask_delimiters
    return "memento and delimiters" if kept else "memento"


def _sharpness(apart: np.ndarray) -> float:
    """How much a distance says, as validation has it; 0 if it says nothing."""
    scale = float(np.mean(apart[:, 1:])) or 1.0

    def loss(log_sharpness: float) -> float:
        return -float(log_softmax(-np.exp(log_sharpness) * apart / scale, axis=1)[:, 0].mean())

    best = minimize_scalar(loss, bounds=(-12.0, 12.0), method="bounded")
    return float(np.exp(best.x)) / scale if best.fun < np.log(apart.shape[1]) - 1e-6 else 0.0


@dataclass(frozen=True)
class CollisionAttack(Attack):
    """Bits gained by picking the true block from its candidates, and how often the pick is right, open and sealed."""

    name = "collision"
    title = "Collision"
    summary = (
        "Candidate blocks are computed again and their keys and values matched with the retained ones: the upper "
        "bound for a reader of the cache."
    )
    threat = INSIDER
    units = ("bits", "rate")
    counts_bits = True

    def secrets(self, context: AuditContext) -> tuple[str, ...]:
        return (BLOCK_SECRET,)

    def skip_reason(self, context: AuditContext, secret: str) -> str | None:
        split = context.split
        if all(len(find_collision_cases(context, part)) >= N_CANDIDATES for part in (split.validation, split.test)):
            return None
        return "too few blocks have others as long with the very same memento, which could stand in for them"

    def n_gated(self, context: AuditContext) -> int:
        return 1  # whether or not enough candidates are found

    def run(self, context: AuditContext) -> list[Evidence]:
        chosen, judged = (
            find_collision_cases(context, part) for part in (context.split.validation, context.split.test)
        )
        if min(len(chosen), len(judged)) < N_CANDIDATES:
            return []
        found = []
        for condition, arm in (("open", context.arm), ("sealed", Restart())):
            sharpness = _sharpness(distances(context, arm, chosen))
            found += self._findings(context, condition, sharpness, judged, distances(context, arm, judged))
        return found

    def _findings(
        self, context: AuditContext, condition: str, sharpness: float, judged: list[CollisionCase], apart: np.ndarray
    ) -> list[Evidence]:
        """What the distances of the test's candidates, float[cases, N_CANDIDATES], tell under one condition."""
        cluster = context.split.cluster[np.array([case.row for case in judged])]
        most = float(np.log2(N_CANDIDATES))
        values = most + log_softmax(-sharpness * apart, axis=1)[:, 0] / np.log(2)
        gate = condition == "open"
        estimate = mean_estimate(values, cluster, context.alpha if gate else 0.05, most)
        site, n = AttackSite(compared_carriers(context), 0, "all", "kv", "all"), len(judged)
        note = f"of {N_CANDIDATES} candidate blocks"
        first = np.all(apart[:, :1] < apart[:, 1:], axis=1)
        single = one_row_per_cluster(np.arange(n), cluster, context.settings.seed)
        rate = rate_estimate(int(first[single].sum()), len(single))
        return [
            self.evidence(BLOCK_SECRET, condition, "bits", estimate, n, gate=gate, site=site, note=note),
            self.evidence(
                BLOCK_SECRET, condition, "rate", rate, len(single), baseline=1 / N_CANDIDATES, site=site, note=note
            ),
        ]
