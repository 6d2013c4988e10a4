"""Prompts for secrets: text with placeholders for the parts of a secret."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ghosttrace.data.task import Target, Task
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.target_families import target_family

PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class SecretPrompt:
    """Prompt with placeholders for the parts of a secret.

    Attributes:
        text: The prompt as given.
        token_prefixes: For each placeholder, the token ids before it.
        targets: For each placeholder, the target that it asks for, or None if the model's answer is only filled in.
        answer_tokens: For each placeholder, the token ids of each class.
    """

    text: str
    token_prefixes: tuple[tuple[int, ...], ...]
    targets: tuple[str | None, ...]
    answer_tokens: tuple[tuple[tuple[int, ...], ...], ...]


def parse_prompt(text: str, targets: Sequence[Target], audited: Collection[str], tokenizer: Any) -> SecretPrompt:
    """Parse a prompt such as `The code is {digit-0}{digit-1}`.

    The model fills in every placeholder. A placeholder such as `{=note-0}` is filled in without asking for the target.

    Args:
        text: The prompt.
        targets: Targets that placeholders may name.
        audited: Names of the audited targets; placeholders of other targets are only filled in.
        tokenizer: Tokenizer of the model.

    Raises:
        UserError: A placeholder names no target, or the prompt asks for no audited target.
    """
    targets_by_name = {target.name: target for target in targets}
    token_prefixes, names, answer_tokens, begin = [], list[str | None](), [], 0
    for placeholder in PLACEHOLDER.finditer(text):
        name = placeholder[1].removeprefix("=")
        if name not in targets_by_name:
            raise UserError(
                f"{{{placeholder[1]}}} is no target here: --prompt takes {', '.join(targets_by_name)} in braces"
            )
        before = text[begin : placeholder.start()]
        follows_space = before.endswith(" ")
        begin = placeholder.end()
        token_prefixes.append(tuple(tokenizer.encode(before.removesuffix(" "), add_special_tokens=False)))
        names.append(None if placeholder[1].startswith("=") or name not in audited else name)
        answers = (f" {label}" if follows_space else label for label in targets_by_name[name].classes)
        answer_tokens.append(tuple(tuple(tokenizer.encode(answer, add_special_tokens=False)) for answer in answers))
    if not any(names):
        raise UserError(
            f"--prompt {text!r} asks for no target: put parts of the secret in braces, such as {{{min(audited)}}}"
        )
    return SecretPrompt(text, tuple(token_prefixes), tuple(names), tuple(answer_tokens))


def prompts_by_secret(
    texts: Iterable[str], full_task: Task, task: Task, checkpoint: Checkpoint, strict: bool
) -> dict[str, SecretPrompt]:
    """Parse prompts and return the prompt of each secret.

    Args:
        texts: The prompts.
        full_task: Task with all its targets.
        task: Task with the audited targets; placeholders of other targets are only filled in by the model.
        checkpoint: Checkpoint with the tokenizer.
        strict: Refuse a prompt that asks for no audited target. If False, such a prompt is skipped.

    Raises:
        UserError: A placeholder names no target, or a prompt asks for no audited target.
    """
    names = [target.name for target in task.targets]
    prompts = {}
    for text in texts:
        targets = [name for name in names if f"{{{name}}}" in text]
        if targets:
            secret = secret_name_of(targets[0], task)
            prompts[secret] = parse_prompt(text, full_task.targets, names, checkpoint.tokenizer)
        elif strict:
            parts = ", ".join(f"{{{name}}}" for name in names)
            raise UserError(f"--prompt {text!r} asks for no target: put parts of the secret in braces: {parts}")
    return prompts


def secret_name_of(target: str, task: Task) -> str:
    """Return the secret of a target: `note-*` for `note-0`, and the name of the task for targets without a number."""
    stem = target_family(target)
    return stem if stem.endswith("*") else task.name
