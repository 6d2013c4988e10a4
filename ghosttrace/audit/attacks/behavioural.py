"""`behavioural`: go on prompting the session, and see which answer the model finds likely.

After the secret's block has been erased a prompt is typed that asks for it, and the model's probabilities
of each possible answer are read, part by part; what it finds likeliest is typed in, and the next part read.
The attacker learns on traces of their own how far to trust these probabilities (a linear probe on them),
so that bits are comparable to those of all other attacks. Beside that stands what needs no learning: how
often the likeliest answers are all right.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ghosttrace.attention import attending
from ghosttrace.audit.caches import run_session
from ghosttrace.audit.evidence import Evidence, Site, Told, one_each, rate_of, total
from ghosttrace.audit.exhibit import Exhibit
from ghosttrace.channel import Arm, Restart
from ghosttrace.errors import UserError
from ghosttrace.expiry import erasures
from ghosttrace.probe.cells import linear_scores
from ghosttrace.probe.text import marginals

NAME = "behavioural"
SLOT = re.compile(r"\{([^{}]*)\}")
TOKENS = 32_768  # prompted together
LEARNED = 500  # traces, at most, from which the attacker learns how far to trust the model's probabilities


@dataclass(frozen=True)
class Prompt:
    """A text with slots for the parts of a secret.

    Attributes:
        pieces: token ids before each slot.
        targets: the number of the target each slot asks for; None for one that is filled in by the model alone.
        answers: for each slot, the first token of each class.
    """

    pieces: tuple[tuple[int, ...], ...]
    targets: tuple[int | None, ...]
    answers: tuple[tuple[int, ...], ...]


def parse(exhibit: Exhibit, text: str) -> Prompt:
    """A prompt such as `The code is {digit-0}{digit-1}`; `{=note-0}` is filled in and not asked for.

    Raises:
        UserError: a slot that is no target, or no slot at all.
    """
    names = [one.name for one in exhibit.asked]
    encode = exhibit.checkpoint.tokenizer.encode
    pieces, targets, answers, begin = [], [], [], 0
    for slot in SLOT.finditer(text):
        name = slot[1].removeprefix("=")
        if name not in names:
            raise UserError(f"{{{slot[1]}}} is no part of a secret here: --prompt takes {', '.join(names)} in braces")
        before = text[begin : slot.start()]
        spaced = before.endswith(" ")
        number, begin = names.index(name), slot.end()
        pieces.append(tuple(encode(before.removesuffix(" "), add_special_tokens=False)))
        targets.append(None if slot[1].startswith("=") else number)
        spelled = (f" {label}" if spaced else label for label in exhibit.task.targets[number].classes)
        answers.append(tuple(encode(label, add_special_tokens=False)[0] for label in spelled))
    if not targets:
        raise UserError(f"--prompt {text!r} asks for nothing: put the parts of the secret in braces, {{{names[0]}}}")
    return Prompt(tuple(pieces), tuple(targets), tuple(answers))


@dataclass(frozen=True)
class Answers:
    """What the model finds likely.

    Attributes:
        likely: for each target that was asked for, float32[N, C], logarithms; 0 for traces that were not asked.
        said: for each, int64[N]: the class it found likeliest, -1 where something else was likelier still.
    """

    likely: dict[int, np.ndarray]
    said: dict[int, np.ndarray]


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
        log_p = session.logits.float().log_softmax(-1).cpu()
        among = log_p[:, list(options)]
        best = among.argmax(1)
        if target is not None:
            into.likely[target][rows] = among.numpy()
            into.said[target][rows] = torch.where(among.amax(1) >= log_p.amax(1), best, -1).numpy()
        after = prompt.pieces[slot + 1] if slot + 1 < len(prompt.pieces) else ()
        typed = [[options[int(choice)], *after] for choice in best]


def behavioural(exhibit: Exhibit, secret: str, prompt: Prompt) -> list[Evidence]:
    """Bits a secret beyond the text, and how often it is named, over the defended and over the sealed cache.

    Args:
        exhibit: what to attack.
        secret: which secret.
        prompt: that asks for at least one of its parts.
    """
    members = [number for number in exhibit.secrets[secret] if number in prompt.targets]
    found = []
    split = replace(exhibit.split, train=exhibit.split.train[:LEARNED])
    every = np.concatenate([split.train, split.validation, split.test]).tolist()
    for condition, arm in (("open", exhibit.arm), ("sealed", Restart())):
        answers = prompted(exhibit, arm, prompt, every)
        states = torch.from_numpy(np.concatenate([answers.likely[number] for number in members], axis=1))
        asked = [exhibit.asked[number] for number in members]
        (scores,) = linear_scores(states[None], asked, split, exhibit.device)
        gate = condition == "open"
        alpha = exhibit.alpha if gate else 0.05
        estimate, rows = total([Told.of(score) for score in scores], split.cluster, alpha)
        site = Site(carrier="prompt", probe="linear")
        found.append(Evidence(NAME, secret, condition, "bits", estimate, len(rows), gate=gate, site=site))
        found.append(_named(exhibit, secret, condition, members, answers, rows))
    return found


def _named(
    exhibit: Exhibit, secret: str, condition: str, members: list[int], answers: Answers, rows: np.ndarray
) -> Evidence:
    """How often all parts that were asked for are what the model would say, of one trace a cluster."""
    rows = one_each(rows, exhibit.split.cluster, exhibit.settings.seed)
    right = np.all([answers.said[number][rows] == exhibit.asked[number].labels[rows] for number in members], axis=0)
    guess = float(np.prod([_chance(exhibit, number) for number in members]))
    note = f"{len(members)} of {len(exhibit.secrets[secret])} parts, word for word"
    estimate = replace(rate_of(int(right.sum()), len(right)), p=float("nan"))
    return Evidence(NAME, secret, condition, "rate", estimate, len(rows), guess, site=Site(carrier="prompt"), note=note)


def _chance(exhibit: Exhibit, number: int) -> float:
    asked = exhibit.asked[number]
    return float(np.exp(marginals(asked.labels, asked.text.shape[1], exhibit.split.train)).max())
