"""Prompts that ask for a secret: text with slots for its parts."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ghosttrace.data.task import Target, Task
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.evidence import target_family

PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class SecretPrompt:
    """A text with slots for the parts of a secret.

    Attributes:
        text: as it was given.
        token_prefixes: token ids before each slot.
        targets: the target each slot asks for; None for one that is filled in by the model alone.
        answer_tokens: for each slot, the tokens of each class.
    """

    text: str
    token_prefixes: tuple[tuple[int, ...], ...]
    targets: tuple[str | None, ...]
    answer_tokens: tuple[tuple[tuple[int, ...], ...], ...]


def parse_prompt(text: str, targets: Sequence[Target], asked: Collection[str], tokenizer: Any) -> SecretPrompt:
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
    token_prefixes, names, answer_tokens, begin = [], list[str | None](), [], 0
    for slot in PLACEHOLDER.finditer(text):
        name = slot[1].removeprefix("=")
        if name not in known:
            raise UserError(f"{{{slot[1]}}} is no part of a secret here: --prompt takes {', '.join(known)} in braces")
        before = text[begin : slot.start()]
        spaced = before.endswith(" ")
        begin = slot.end()
        token_prefixes.append(tuple(tokenizer.encode(before.removesuffix(" "), add_special_tokens=False)))
        names.append(None if slot[1].startswith("=") or name not in asked else name)
        spelled = (f" {label}" if spaced else label for label in known[name].classes)
        answer_tokens.append(tuple(tuple(tokenizer.encode(label, add_special_tokens=False)) for label in spelled))
    if not any(names):
        raise UserError(f"--prompt {text!r} asks for nothing: put the parts of the secret in braces, {{{min(asked)}}}")
    return SecretPrompt(text, tuple(token_prefixes), tuple(names), tuple(answer_tokens))


def prompts_by_secret(
    given: Iterable[str], whole: Task, task: Task, checkpoint: Checkpoint, strict: bool
) -> dict[str, SecretPrompt]:
    """What is typed to get each secret.

    Args:
        given: the prompts.
        whole: the task with all its targets.
        task: with those that are audited; slots that ask for others are filled in by the model.
        checkpoint: whose tokenizer to use.
        strict: refuse a prompt that asks for no target of the task; else it is passed over.

    Raises:
        UserError: a prompt asks for no part of any secret, or for what there is not.
    """
    names = [target.name for target in task.targets]
    found = {}
    for text in given:
        asked = [name for name in names if f"{{{name}}}" in text]
        if asked:
            found[secret_name_of(asked[0], task)] = parse_prompt(text, whole.targets, names, checkpoint.tokenizer)
        elif strict:
            parts = ", ".join(f"{{{name}}}" for name in names)
            raise UserError(f"--prompt {text!r} asks for nothing: put parts of the secret in braces: {parts}")
    return found


def secret_name_of(target: str, task: Task) -> str:
    """The secret that a target is a part of: `note-*` of `note-0` and so on; targets without a number are all one."""
    stem = target_family(target)
    return stem if stem.endswith("*") else task.name
