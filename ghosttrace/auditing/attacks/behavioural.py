"""`behavioural`: continue the session with a prompt for the secret, and read how probable each answer is.

The prompt is fed after the secret's block has been erased. The model's probabilities of all possible answers are read
part by part: the most probable answer of a part is fed before the next part is read. The probability of an answer is
that of its first token if no other answer starts with that token, and that of all its tokens otherwise. A linear probe
on these probabilities, fitted on the attacker's own traces, calibrates them, so that the bits are comparable with those
of all other attacks. The attack also reports a rate that needs no fitting: how often greedy decoding spells all parts
exactly.
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
    every_part_equals_text,
    one_row_per_cluster,
    rate_estimate,
    total_bits,
)
from ghosttrace.auditing.prompts import SecretPrompt
from ghosttrace.auditing.threats import USER
from ghosttrace.law.expiry import MementoLaw, erasures
from ghosttrace.model.attention import attending
from ghosttrace.model.session import Session
from ghosttrace.probing.evidence import ProbeTarget
from ghosttrace.probing.features import secret_expires_at
from ghosttrace.probing.fit_and_score import linear_scores
from ghosttrace.probing.split import Split
from ghosttrace.probing.text_baseline import log_marginals

PROMPT_BATCH_TOKENS = 32_768  # tokens per batch of sessions, padding included
MAX_CALIBRATION_TRACES = 500  # training traces of the probe that calibrates the model's probabilities


@dataclass(frozen=True)
class AnswerScores:
    """The model's answers to a prompt.

    Attributes:
        answer_log_p: For each target of the prompt, float32[N, C] natural log-probabilities of the classes; 0 for
            traces that were not prompted.
        greedy_class: For each target of the prompt, int64[N]: the class that greedy decoding spells, or -1.
    """

    answer_log_p: dict[str, np.ndarray]
    greedy_class: dict[str, np.ndarray]


def prompt_sessions(context: AuditContext, arm: Arm, prompt: SecretPrompt, rows: Sequence[int]) -> AnswerScores:
    """Feed a prompt to the sessions of some traces, after the secret's block has been erased.

    Args:
        context: Context of the audit.
        arm: What happens to the retained cache.
        prompt: The prompt for the secret.
        rows: Row numbers of the traces in the task.
    """
    count = len(context.task.samples)
    answer_log_p, greedy_class = {}, {}
    for target, options in zip(prompt.targets, prompt.answer_tokens, strict=True):
        if target is not None:
            answer_log_p[target] = np.zeros((count, len(options)), dtype=np.float32)
            greedy_class[target] = np.full(count, -1)
    scores = AnswerScores(answer_log_p, greedy_class)
    ids = {row: _ids_until_erasure(context, row) for row in rows}
    order = sorted(ids, key=lambda row: len(ids[row]))
    with attending(context.checkpoint.model):
        batch_size = max(1, PROMPT_BATCH_TOKENS // max(map(len, ids.values())))
        for begin in range(0, len(order), batch_size):
            batch = order[begin : begin + batch_size]
            _prompt_batch(context, arm, prompt, batch, [ids[row] for row in batch], scores)
    return scores


def _ids_until_erasure(context: AuditContext, row: int) -> list[int]:
    """Return the token ids of a trace up to the erasure of its secret."""
    sample, checkpoint = context.task.samples[row], context.checkpoint
    if not isinstance(checkpoint.law, MementoLaw):
        return list(sample.ids[: secret_expires_at(checkpoint, sample)])
    expires_at = {
        erasure.block.start: erasure.expires_at
        for erasure in erasures(sample.ids, checkpoint.markup, checkpoint.policy)
    }
    block_start = max(start for start in expires_at if start <= sample.secret_indices[0])
    return list(sample.ids[: expires_at[block_start] + checkpoint.policy.keep_last_block_for_answer])


def _prompt_batch(
    context: AuditContext,
    arm: Arm,
    prompt: SecretPrompt,
    rows: Sequence[int],
    ids: Sequence[list[int]],
    scores: AnswerScores,
) -> None:
    """Prompt some traces together and write their rows of `scores`."""
    session = run_session(context.checkpoint, arm, ids, [(context.settings.seed, row) for row in rows])
    chunks = [list(prompt.token_prefixes[0]) for _ in rows]
    for number, (target, options) in enumerate(zip(prompt.targets, prompt.answer_tokens, strict=True)):
        if any(chunks):
            session.advance(chunks)
        answer_log_p, greedy_class = score_answers(session, options)
        if target is not None:
            scores.answer_log_p[target][rows], scores.greedy_class[target][rows] = answer_log_p, greedy_class
        next_prefix = prompt.token_prefixes[number + 1] if number + 1 < len(prompt.token_prefixes) else ()
        chunks = [[*options[choice], *next_prefix] for choice in answer_log_p.argmax(1)]


def score_answers(session: Session, options: Sequence[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """Score possible answers as continuations of each row of a session, which is left unchanged.

    Args:
        session: Session with B rows.
        options: Token ids of C answers.

    Returns:
        Natural log-probabilities of the answers, float32[B, C], and the answer that greedy decoding spells, int64[B],
        -1 for none. If one answer begins another, the longest one that greedy decoding spells is returned.
    """
    count = len(session.rows)
    first_token_log_p = session.logits.float().log_softmax(-1).cpu().numpy()[:, [option[0] for option in options]]
    greedy_class, best = np.full(count, -1), first_token_log_p.argmax(1)
    if len({option[0] for option in options}) == len(options):
        _, greedy = score_spellings(session, [options[choice] for choice in best])
        return first_token_log_p, np.where(greedy, best, -1)
    log_p = np.empty_like(first_token_log_p)
    for choice in sorted(range(len(options)), key=lambda choice: len(options[choice])):
        log_p[:, choice], greedy = score_spellings(session, [options[choice]] * count)
        greedy_class[greedy] = choice
    return log_p, greedy_class


def score_spellings(session: Session, answers: Sequence[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """Score one answer per row of a session. The answers are fed to a copy of the cache.

    Args:
        session: Session with B rows.
        answers: Token ids of B answers.

    Returns:
        Natural log-probability of each answer, float32[B], and whether greedy decoding spells it, bool[B].
    """
    logits = session.logits.float()[:, None].cpu()
    runs = [list(answer[:-1]) for answer in answers]
    if any(runs):
        index = [row.num_processed + np.arange(len(run)) for row, run in zip(session.rows, runs, strict=True)]
        position = [indices - row.position_shift for row, indices in zip(session.rows, index, strict=True)]
        fork = session.cache.copy_rows(range(len(answers)))
        logits = torch.cat([logits, session.forward(fork, runs, index, position, all_logits=True).float().cpu()], dim=1)
    width = logits.shape[1]
    tokens = torch.tensor([[*answer, *[0] * (width - len(answer))] for answer in answers])
    in_answer = torch.arange(width) < torch.tensor([len(answer) for answer in answers])[:, None]
    answer_logits = logits.gather(2, tokens[:, :, None])[:, :, 0]
    greedy = ((answer_logits >= logits.amax(2)) | ~in_answer).all(1)
    log_p = (answer_logits - logits.logsumexp(2)).where(in_answer, torch.tensor(0.0))
    return log_p.sum(1).numpy(), greedy.numpy()


def calibration_split(split: Split, seed: int) -> Split:
    """Return the split with at most `MAX_CALIBRATION_TRACES` training traces, drawn evenly from all clusters."""
    drawn = np.random.default_rng([seed, 0x1EA2]).permutation(split.train)
    order = np.argsort(split.cluster[drawn], kind="stable")
    cluster = split.cluster[drawn][order]
    rank_in_cluster = np.empty(len(drawn), dtype=np.int64)
    rank_in_cluster[order] = np.arange(len(drawn)) - np.searchsorted(cluster, cluster)
    by_rank = drawn[np.argsort(rank_in_cluster, kind="stable")]
    return replace(split, train=np.sort(by_rank[:MAX_CALIBRATION_TRACES]))


@dataclass(frozen=True)
class BehaviouralAttack(Attack):
    """Attack that measures bits per secret beyond the text and the rate of exact answers, defended and sealed."""

    name = "behavioural"
    title = "Behavioural extraction"
    summary = "The session is prompted for the secret, and the secret is predicted from the model's own answers."
    threat = USER
    units = ("bits", "rate")
    counts_bits = True

    def skip_reason(self, context: AuditContext, secret: str) -> str | None:
        return None if secret in context.prompts else "no prompt asks for it (give one with --prompt)"

    def run(self, context: AuditContext) -> list[Evidence]:
        return [finding for secret in self.attackable_secrets(context) for finding in self._findings(context, secret)]

    def _findings(self, context: AuditContext, secret: str) -> list[Evidence]:
        prompt = context.prompts[secret]
        targets = [target for target in context.parts(secret) if target.name in prompt.targets]
        findings = []
        split = calibration_split(context.split, context.settings.seed)
        all_rows = np.concatenate([split.train, split.validation, split.test]).tolist()
        for condition, arm in (("open", context.arm), ("sealed", Restart())):
            answers = prompt_sessions(context, arm, prompt, all_rows)
            states = torch.from_numpy(np.concatenate([answers.answer_log_p[target.name] for target in targets], axis=1))
            (scores,) = linear_scores(states[None], targets, split, context.device)
            gate = condition == "open"
            alpha = context.alpha if gate else 0.05
            log_probs = [LabelLogProbs.from_scores(score) for score in scores]
            estimate, rows = total_bits(log_probs, split.cluster, alpha)
            site = AttackSite(carrier="prompt", probe="linear")
            fell_back = every_part_equals_text(log_probs)
            findings.append(
                self.evidence(secret, condition, "bits", estimate, len(rows), gate=gate, site=site, fell_back=fell_back)
            )
            findings.append(self._exact_answer_rate(context, secret, condition, targets, answers, rows))
        return findings

    def _exact_answer_rate(
        self,
        context: AuditContext,
        secret: str,
        condition: str,
        targets: list[ProbeTarget],
        answers: AnswerScores,
        rows: np.ndarray,
    ) -> Evidence:
        """Return how often greedy decoding spells all prompted parts of a secret, on one trace per cluster."""
        rows = one_row_per_cluster(rows, context.split.cluster, context.settings.seed)
        correct = np.all([answers.greedy_class[target.name][rows] == target.labels[rows] for target in targets], axis=0)
        chance = float(np.prod([_chance(context, target) for target in targets]))
        note = f"{len(targets)} of {len(context.secrets[secret])} parts, word for word"
        estimate = replace(rate_estimate(int(correct.sum()), len(correct)), p=float("nan"))
        site = AttackSite(carrier="prompt")
        return self.evidence(secret, condition, "rate", estimate, len(rows), baseline=chance, site=site, note=note)


def _chance(context: AuditContext, target: ProbeTarget) -> float:
    """Return the frequency of a target's most common class."""
    return float(np.exp(log_marginals(target.labels, target.text.shape[1], context.split.train)).max())
