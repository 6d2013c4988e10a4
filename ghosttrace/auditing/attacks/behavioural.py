"""`behavioural`: go on prompting the session, and see which answer the model finds likely.

After the secret's block has been erased a prompt is typed that asks for it, and the model's probabilities
of each possible answer are read, part by part; what it finds likeliest is typed in whole, and the next part
read. An answer is as likely as its first token, if that tells it from all others, and else as its tokens
together. The attacker learns on traces of their own how far to trust these probabilities (a linear probe on
them), so that bits are comparable to those of all other attacks. Beside that stands what needs no learning:
how often the model, decoding greedily, would say all parts word for word.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ghosttrace.ablation.arms import Arm, Restart
from ghosttrace.auditing.caches import run_session
from ghosttrace.auditing.context import Exhibit
from ghosttrace.auditing.evidence import Evidence, Site, Told, one_each, rate_of, total
from ghosttrace.data.task import Target
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import erasures
from ghosttrace.model.attention import attending
from ghosttrace.model.session import Session
from ghosttrace.probing.cells import linear_scores
from ghosttrace.probing.evidence import Asked
from ghosttrace.probing.split import Split
from ghosttrace.probing.text import marginals

NAME = "behavioural"
SLOT = re.compile(r"\{([^{}]*)\}")
TOKENS = 32_768  # prompted together
LEARNED = 500  # traces, at most, from which the attacker learns how far to trust the model's probabilities


@dataclass(frozen=True)
class Prompt:
    """A text with slots for the parts of a secret.

    Attributes:
        text: as it was given.
        pieces: token ids before each slot.
        targets: the target each slot asks for; None for one that is filled in by the model alone.
        answers: for each slot, the tokens of each class.
    """

    text: str
    pieces: tuple[tuple[int, ...], ...]
    targets: tuple[str | None, ...]
    answers: tuple[tuple[tuple[int, ...], ...], ...]


def parse(text: str, targets: Sequence[Target], asked: Collection[str], tokenizer: Any) -> Prompt:
    """A prompt such as `The code is {digit-0}{digit-1}`; `{=note-0}` is filled in and not asked for.

    Args:
        text: the prompt.
        targets: all that slots may name.
        asked: those of them that the audit asks for; the others are filled in.
        tokenizer: of the model.

    Raises:
        UserError: a slot that is no target, or none that is asked for.
    """
    known = {target.name: target for target in targets}
    pieces, names, answers, begin = [], list[str | None](), [], 0
    for slot in SLOT.finditer(text):
        name = slot[1].removeprefix("=")
        if name not in known:
            raise UserError(f"{{{slot[1]}}} is no part of a secret here: --prompt takes {', '.join(known)} in braces")
        before = text[begin : slot.start()]
        spaced = before.endswith(" ")
        begin = slot.end()
        pieces.append(tuple(tokenizer.encode(before.removesuffix(" "), add_special_tokens=False)))
        names.append(None if slot[1].startswith("=") or name not in asked else name)
        spelled = (f" {label}" if spaced else label for label in known[name].classes)
        answers.append(tuple(tuple(tokenizer.encode(label, add_special_tokens=False)) for label in spelled))
    if not any(names):
        raise UserError(f"--prompt {text!r} asks for nothing: put the parts of the secret in braces, {{{min(asked)}}}")
    return Prompt(text, tuple(pieces), tuple(names), tuple(answers))


@dataclass(frozen=True)
class Answers:
    """What the model finds likely.

    Attributes:
        likely: for each target that was asked for, float32[N, C], logarithms; 0 for traces that were not asked.
        said: for each, int64[N]: the class that greedy decoding spells, -1 where it spells none.
    """

    likely: dict[str, np.ndarray]
    said: dict[str, np.ndarray]


def prompted(exhibit: Exhibit, arm: Arm, prompt: Prompt, asked: Sequence[int]) -> Answers:
    """Ask the sessions of some traces, after their secret's block has been erased."""
    count = len(exhibit.task.samples)
    likely, said = {}, {}
    for target, options in zip(prompt.targets, prompt.answers, strict=True):
        if target is not None:
            likely[target] = np.zeros((count, len(options)), dtype=np.float32)
            said[target] = np.full(count, -1)
    ids = {row: _until_erased(exhibit, row) for row in asked}
    order = sorted(ids, key=lambda row: len(ids[row]))
    with attending(exhibit.checkpoint.model):
        together = max(1, TOKENS // max(map(len, ids.values())))
        for begin in range(0, len(order), together):
            rows = order[begin : begin + together]
            _ask(exhibit, arm, prompt, rows, [ids[row] for row in rows], Answers(likely, said))
    return Answers(likely, said)


def _until_erased(exhibit: Exhibit, row: int) -> list[int]:
    """The trace up to where the block with its secret leaves the cache."""
    sample, at = exhibit.task.samples[row], exhibit.checkpoint
    gone = {one.block.start: one.at for one in erasures(sample.ids, at.markup, at.policy)}
    inside = max(start for start in gone if start <= sample.where[0])
    return list(sample.ids[: gone[inside] + at.policy.keep_last_block_for_answer])


def _ask(
    exhibit: Exhibit, arm: Arm, prompt: Prompt, rows: Sequence[int], ids: Sequence[list[int]], into: Answers
) -> None:
    """Fill in some rows."""
    session = run_session(exhibit.checkpoint, arm, ids, [(exhibit.settings.seed, row) for row in rows])
    typed = [list(prompt.pieces[0]) for _ in rows]
    for slot, (target, options) in enumerate(zip(prompt.targets, prompt.answers, strict=True)):
        if any(typed):
            session.advance(typed)
        likely, said = read_answers(session, options)
        if target is not None:
            into.likely[target][rows], into.said[target][rows] = likely, said
        after = prompt.pieces[slot + 1] if slot + 1 < len(prompt.pieces) else ()
        typed = [[*options[choice], *after] for choice in likely.argmax(1)]


def read_answers(session: Session, options: Sequence[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """How likely each answer is as what comes next, and which of them greedy decoding spells.

    Returns:
        float32[B, C], natural logarithms, and int64[B], -1 for none; the longest, if one begins another.
    """
    count = len(session.rows)
    first = session.logits.float().log_softmax(-1).cpu().numpy()[:, [option[0] for option in options]]
    said, best = np.full(count, -1), first.argmax(1)
    if len({option[0] for option in options}) == len(options):
        _, greedy = spelled(session, [options[choice] for choice in best])
        return first, np.where(greedy, best, -1)
    whole = np.empty_like(first)
    for place in sorted(range(len(options)), key=lambda place: len(options[place])):
        whole[:, place], greedy = spelled(session, [options[place]] * count)
        said[greedy] = place
    return whole, said


def spelled(session: Session, answers: Sequence[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """How likely an answer is in each row, float32[B], natural logarithms, and whether greedy decoding spells it.

    They are read into a copy of the cache: the session stays where it is.
    """
    logits = session.logits.float()[:, None].cpu()
    runs = [list(answer[:-1]) for answer in answers]
    if any(runs):
        index = [row.fed + np.arange(len(run)) for row, run in zip(session.rows, runs, strict=True)]
        position = [places - row.closed for row, places in zip(session.rows, index, strict=True)]
        fork = session.cache.take(range(len(answers)))
        logits = torch.cat([logits, session.forward(fork, runs, index, position, every=True).float().cpu()], dim=1)
    width = logits.shape[1]
    tokens = torch.tensor([[*answer, *[0] * (width - len(answer))] for answer in answers])
    inside = torch.arange(width) < torch.tensor([len(answer) for answer in answers])[:, None]
    own = logits.gather(2, tokens[:, :, None])[:, :, 0]
    greedy = ((own >= logits.amax(2)) | ~inside).all(1)
    log_p = (own - logits.logsumexp(2)).where(inside, torch.tensor(0.0))
    return log_p.sum(1).numpy(), greedy.numpy()


def learners(split: Split, seed: int) -> Split:
    """The split with fewer traces to learn on, drawn at random from as many clusters as there are, evenly."""
    drawn = np.random.default_rng([seed, 0x1EA2]).permutation(split.train)
    order = np.argsort(split.cluster[drawn], kind="stable")
    cluster = split.cluster[drawn][order]
    turn = np.empty(len(drawn), dtype=np.int64)  # of each trace within its cluster
    turn[order] = np.arange(len(drawn)) - np.searchsorted(cluster, cluster)
    return replace(split, train=np.sort(drawn[np.argsort(turn, kind="stable")][:LEARNED]))


def behavioural(exhibit: Exhibit, secret: str, prompt: Prompt) -> list[Evidence]:
    """Bits a secret beyond the text, and how often it is named, over the defended and over the sealed cache.

    Args:
        exhibit: what to attack.
        secret: which secret.
        prompt: that asks for at least one of its parts.
    """
    members = [one for one in exhibit.parts(secret) if one.name in prompt.targets]
    found = []
    split = learners(exhibit.split, exhibit.settings.seed)
    every = np.concatenate([split.train, split.validation, split.test]).tolist()
    for condition, arm in (("open", exhibit.arm), ("sealed", Restart())):
        answers = prompted(exhibit, arm, prompt, every)
        states = torch.from_numpy(np.concatenate([answers.likely[one.name] for one in members], axis=1))
        (scores,) = linear_scores(states[None], members, split, exhibit.device)
        gate = condition == "open"
        alpha = exhibit.alpha if gate else 0.05
        estimate, rows = total([Told.of(score) for score in scores], split.cluster, alpha)
        site = Site(carrier="prompt", probe="linear")
        found.append(Evidence(NAME, secret, condition, "bits", estimate, len(rows), gate=gate, site=site))
        found.append(_named(exhibit, secret, condition, members, answers, rows))
    return found


def _named(
    exhibit: Exhibit, secret: str, condition: str, members: list[Asked], answers: Answers, rows: np.ndarray
) -> Evidence:
    """How often all parts that were asked for are what the model would say, of one trace a cluster."""
    rows = one_each(rows, exhibit.split.cluster, exhibit.settings.seed)
    right = np.all([answers.said[one.name][rows] == one.labels[rows] for one in members], axis=0)
    guess = float(np.prod([_chance(exhibit, one) for one in members]))
    note = f"{len(members)} of {len(exhibit.secrets[secret])} parts, word for word"
    estimate = replace(rate_of(int(right.sum()), len(right)), p=float("nan"))
    return Evidence(NAME, secret, condition, "rate", estimate, len(rows), guess, site=Site(carrier="prompt"), note=note)


def _chance(exhibit: Exhibit, asked: Asked) -> float:
    return float(np.exp(marginals(asked.labels, asked.text.shape[1], exhibit.split.train)).max())
