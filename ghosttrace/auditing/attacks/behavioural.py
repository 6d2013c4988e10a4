"""`behavioural`: go on prompting the session, and see which answer the model finds likely.

After the secret's block has been erased a prompt is typed that asks for it, and the model's probabilities
of each possible answer are read, part by part; what it finds likeliest is typed in whole, and the next part
read. An answer is as likely as its first token, if that tells it from all others, and else as its tokens
together. The attacker learns on traces of their own how far to trust these probabilities (a linear probe on
them), so that bits are comparable to those of all other attacks. Beside that stands what needs no learning:
how often the model, decoding greedily, would say all parts word for word.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ghosttrace.ablation.arms import Arm, Restart
from ghosttrace.auditing.attacks.attack import Attack
from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.defended_caches import run_session
from ghosttrace.auditing.evidence import (
    AttackSite,
    Evidence,
    LabelLogProbs,
    one_row_per_cluster,
    rate_estimate,
    total_bits,
)
from ghosttrace.auditing.prompts import SecretPrompt
from ghosttrace.auditing.threats import USER
from ghosttrace.law.expiry import erasures
from ghosttrace.model.attention import attending
from ghosttrace.model.session import Session
from ghosttrace.probing.evidence import ProbeTarget
from ghosttrace.probing.fit_and_score import linear_scores
from ghosttrace.probing.split import Split
from ghosttrace.probing.text_baseline import log_marginals

PROMPT_BATCH_TOKENS = 32_768  # prompted together
MAX_CALIBRATION_TRACES = (
    500  # traces, at most, from which the attacker learns how far to trust the model's probabilities
)


@dataclass(frozen=True)
class AnswerScores:
    """What the model finds likely.

    Attributes:
        answer_log_p: for each target that was asked for, float32[N, C], logarithms; 0 for traces that were not asked.
        greedy_class: for each, int64[N]: the class that greedy decoding spells, -1 where it spells none.
    """

    answer_log_p: dict[str, np.ndarray]
    greedy_class: dict[str, np.ndarray]


def prompt_sessions(context: AuditContext, arm: Arm, prompt: SecretPrompt, asked: Sequence[int]) -> AnswerScores:
    """Ask the sessions of some traces, after their secret's block has been erased."""
    count = len(context.task.samples)
    answer_log_p, greedy_class = {}, {}
    for target, options in zip(prompt.targets, prompt.answer_tokens, strict=True):
        if target is not None:
            answer_log_p[target] = np.zeros((count, len(options)), dtype=np.float32)
            greedy_class[target] = np.full(count, -1)
    ids = {row: _until_erased(context, row) for row in asked}
    order = sorted(ids, key=lambda row: len(ids[row]))
    with attending(context.checkpoint.model):
        together = max(1, PROMPT_BATCH_TOKENS // max(map(len, ids.values())))
        for begin in range(0, len(order), together):
            rows = order[begin : begin + together]
            _ask(context, arm, prompt, rows, [ids[row] for row in rows], AnswerScores(answer_log_p, greedy_class))
    return AnswerScores(answer_log_p, greedy_class)


def _until_erased(context: AuditContext, row: int) -> list[int]:
    """The trace up to where the block with its secret leaves the cache."""
    sample, at = context.task.samples[row], context.checkpoint
    gone = {one.block.start: one.expires_at for one in erasures(sample.ids, at.markup, at.policy)}
    inside = max(start for start in gone if start <= sample.secret_indices[0])
    return list(sample.ids[: gone[inside] + at.policy.keep_last_block_for_answer])


def _ask(
    context: AuditContext,
    arm: Arm,
    prompt: SecretPrompt,
    rows: Sequence[int],
    ids: Sequence[list[int]],
    into: AnswerScores,
) -> None:
    """Fill in some rows."""
    session = run_session(context.checkpoint, arm, ids, [(context.settings.seed, row) for row in rows])
    typed = [list(prompt.token_prefixes[0]) for _ in rows]
    for slot, (target, options) in enumerate(zip(prompt.targets, prompt.answer_tokens, strict=True)):
        if any(typed):
            session.advance(typed)
        answer_log_p, greedy_class = score_answers(session, options)
        if target is not None:
            into.answer_log_p[target][rows], into.greedy_class[target][rows] = answer_log_p, greedy_class
        after = prompt.token_prefixes[slot + 1] if slot + 1 < len(prompt.token_prefixes) else ()
        typed = [[*options[choice], *after] for choice in answer_log_p.argmax(1)]


def score_answers(session: Session, options: Sequence[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """How likely each answer is as what comes next, and which of them greedy decoding spells.

    Returns:
        float32[B, C], natural logarithms, and int64[B], -1 for none; the longest, if one begins another.
    """
    count = len(session.rows)
    first = session.logits.float().log_softmax(-1).cpu().numpy()[:, [option[0] for option in options]]
    said, best = np.full(count, -1), first.argmax(1)
    if len({option[0] for option in options}) == len(options):
        _, greedy = score_spellings(session, [options[choice] for choice in best])
        return first, np.where(greedy, best, -1)
    whole = np.empty_like(first)
    for place in sorted(range(len(options)), key=lambda place: len(options[place])):
        whole[:, place], greedy = score_spellings(session, [options[place]] * count)
        said[greedy] = place
    return whole, said


def score_spellings(session: Session, answers: Sequence[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """How likely an answer is in each row, float32[B], natural logarithms, and whether greedy decoding spells it.

    They are read into a copy of the cache: the session stays where it is.
    """
    logits = session.logits.float()[:, None].cpu()
    runs = [list(answer[:-1]) for answer in answers]
    if any(runs):
        index = [row.num_processed + np.arange(len(run)) for row, run in zip(session.rows, runs, strict=True)]
        position = [places - row.position_shift for row, places in zip(session.rows, index, strict=True)]
        fork = session.cache.copy_rows(range(len(answers)))
        logits = torch.cat([logits, session.forward(fork, runs, index, position, all_logits=True).float().cpu()], dim=1)
    width = logits.shape[1]
    tokens = torch.tensor([[*answer, *[0] * (width - len(answer))] for answer in answers])
    inside = torch.arange(width) < torch.tensor([len(answer) for answer in answers])[:, None]
    own = logits.gather(2, tokens[:, :, None])[:, :, 0]
    greedy = ((own >= logits.amax(2)) | ~inside).all(1)
    log_p = (own - logits.logsumexp(2)).where(inside, torch.tensor(0.0))
    return log_p.sum(1).numpy(), greedy.numpy()


def calibration_split(split: Split, seed: int) -> Split:
    """The split with fewer traces to learn on, drawn at random from as many clusters as there are, evenly."""
    drawn = np.random.default_rng([seed, 0x1EA2]).permutation(split.train)
    order = np.argsort(split.cluster[drawn], kind="stable")
    cluster = split.cluster[drawn][order]
    turn = np.empty(len(drawn), dtype=np.int64)  # of each trace within its cluster
    turn[order] = np.arange(len(drawn)) - np.searchsorted(cluster, cluster)
    return replace(split, train=np.sort(drawn[np.argsort(turn, kind="stable")][:MAX_CALIBRATION_TRACES]))


@dataclass(frozen=True)
class BehaviouralAttack(Attack):
    """Bits a secret beyond the text, and how often it is named, over the defended and over the sealed cache."""

    name = "behavioural"
    title = "Behavioural extraction"
    summary = "The session is prompted further, and the model's own answers are used to name the secret."
    threat = USER
    units = ("bits", "rate")
    counts_bits = True

    def skip_reason(self, context: AuditContext, secret: str) -> str | None:
        return None if secret in context.prompts else "no prompt asks for it (--prompt)"

    def run(self, context: AuditContext) -> list[Evidence]:
        return [one for secret in self.attackable_secrets(context) for one in self._findings(context, secret)]

    def _findings(self, context: AuditContext, secret: str) -> list[Evidence]:
        prompt = context.prompts[secret]
        members = [one for one in context.parts(secret) if one.name in prompt.targets]
        found = []
        split = calibration_split(context.split, context.settings.seed)
        every = np.concatenate([split.train, split.validation, split.test]).tolist()
        for condition, arm in (("open", context.arm), ("sealed", Restart())):
            answers = prompt_sessions(context, arm, prompt, every)
            states = torch.from_numpy(np.concatenate([answers.answer_log_p[one.name] for one in members], axis=1))
            (scores,) = linear_scores(states[None], members, split, context.device)
            gate = condition == "open"
            alpha = context.alpha if gate else 0.05
            estimate, rows = total_bits([LabelLogProbs.of(score) for score in scores], split.cluster, alpha)
            site = AttackSite(carrier="prompt", probe="linear")
            found.append(self.evidence(secret, condition, "bits", estimate, len(rows), gate=gate, site=site))
            found.append(self._named(context, secret, condition, members, answers, rows))
        return found

    def _named(
        self,
        context: AuditContext,
        secret: str,
        condition: str,
        members: list[ProbeTarget],
        answers: AnswerScores,
        rows: np.ndarray,
    ) -> Evidence:
        """How often all parts that were asked for are what the model would say, of one trace a cluster."""
        rows = one_row_per_cluster(rows, context.split.cluster, context.settings.seed)
        right = np.all([answers.greedy_class[one.name][rows] == one.labels[rows] for one in members], axis=0)
        guess = float(np.prod([_chance(context, one) for one in members]))
        note = f"{len(members)} of {len(context.secrets[secret])} parts, word for word"
        estimate = replace(rate_estimate(int(right.sum()), len(right)), p=float("nan"))
        site = AttackSite(carrier="prompt")
        return self.evidence(secret, condition, "rate", estimate, len(rows), baseline=guess, site=site, note=note)


def _chance(context: AuditContext, asked: ProbeTarget) -> float:
    return float(np.exp(log_marginals(asked.labels, asked.text.shape[1], context.split.train)).max())
