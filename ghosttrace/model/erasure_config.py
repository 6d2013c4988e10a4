"""The law and the policy that a checkpoint records in config.json under the key `ghosttrace`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy
from ghosttrace.law.markup import Markup
from ghosttrace.law.parse import is_memento

CONFIG_KEY = "ghosttrace"


def recorded_policy(config: PreTrainedConfig) -> dict[str, Any] | None:
    """Return the policy recorded in a checkpoint's config, or None."""
    return (getattr(config, CONFIG_KEY, None) or {}).get("policy")


def recorded_law(config: PreTrainedConfig) -> str | None:
    """Return the specification of the law recorded in a checkpoint's config; None for Memento's."""
    return (getattr(config, CONFIG_KEY, None) or {}).get("law")


def resolve_policy(recorded: Mapping[str, Any] | None, **overrides: Any) -> Policy:
    """Combine the recorded policy with the user's overrides.

    Args:
        recorded: the policy returned by `recorded_policy`.
        overrides: fields of `Policy` that replace recorded ones; None keeps the recorded value.

    Raises:
        UserError: `mask_delimiters` is neither recorded nor given, or given against the record, or a field is unknown.
    """
    trained, given = (recorded or {}).get("mask_delimiters"), overrides.get("mask_delimiters")
    if None not in (trained, given) and trained != given:
        flags = {True: "--mask-delimiters", False: "--keep-delimiters"}
        raise UserError(
            f"the model was trained with {flags[bool(trained)]}, and other delimiters would measure another model: "
            f"leave out {flags[bool(given)]}"
        )
    fields = dict(recorded or {}) | {name: value for name, value in overrides.items() if value is not None}
    if "mask_delimiters" not in fields:
        raise UserError(
            "the model does not record whether its training erased the block delimiters: "
            "give --mask-delimiters (Phi) or --keep-delimiters (Qwen3, Olmo 3)"
        )
    unknown = fields.keys() - {field.name for field in dataclasses.fields(Policy)}
    if unknown:
        raise UserError(f"the policy in config.json has unknown fields {', '.join(sorted(unknown))}: remove them")
    return Policy(**fields)


def read_erasure_config(
    name: str, config: PreTrainedConfig, tokenizer: Any, delimiters: Mapping[str, str] | None = None, **policy: Any
) -> tuple[Markup, Policy, tuple[str, ...]]:
    """Read markup, policy and training stages from a checkpoint's config and tokenizer.

    Args:
        name: name of the checkpoint, for messages.
        config, tokenizer: config and tokenizer of the checkpoint.
        delimiters: other spellings of the delimiter tokens.
        policy: fields of `Policy` that override the recorded ones.

    Returns:
        Markup, policy, and the recorded training stages.

    Raises:
        UserError: delimiters, chat template or policy are missing.
    """
    record = getattr(config, CONFIG_KEY, None) or {}
    markup = Markup.from_tokenizer(tokenizer, record.get("delimiters", {}) | (delimiters or {}))
    resolved = resolve_policy(recorded_policy(config), **policy)
    if resolved.require_assistant_section and not markup.assistant_header:
        raise UserError(f"{name} has no chat template: put chat_template.jinja into the tokenizer's folder")
    return markup, resolved, tuple(record.get("stages", ()))


def read_block_config(
    spec: str, config: PreTrainedConfig, tokenizer: Any, delimiters: Mapping[str, str] | None = None, **policy: Any
) -> tuple[Markup, Policy, tuple[str, ...]]:
    """Read what a checkpoint under another law than Memento's knows about blocks: a stock model knows nothing.

    Args:
        spec: specification of the law, for messages.
        config, tokenizer: config and tokenizer of the checkpoint.
        delimiters: other spellings of the delimiter tokens.
        policy: fields of `Policy` that the user gave; they have no effect and are refused.

    Returns:
        Markup, a policy that erases no block, and the recorded training stages.

    Raises:
        UserError: the user gave a field of `Policy`.
    """
    given = [name for name, value in policy.items() if value is not None]
    if given:
        raise UserError(f"the law {spec} replaces Memento's policy: leave out {', '.join(sorted(given))}")
    record = getattr(config, CONFIG_KEY, None) or {}
    markup = Markup.of_any_tokenizer(tokenizer, record.get("delimiters", {}) | (delimiters or {}))
    fields = {"mask_delimiters": False, "require_assistant_section": bool(markup.assistant_header)}
    resolved = dataclasses.replace(resolve_policy(fields | (recorded_policy(config) or {})), keep_last_n_blocks=-1)
    return markup, resolved, tuple(record.get("stages", ()))


def require_memento(spec: str | None, command: str) -> None:
    """Check that a law is Memento's.

    Args:
        spec: specification of the law; None for Memento's.
        command: what needs Memento's law, for the message.

    Raises:
        UserError: it is another law.
    """
    if not is_memento(spec):
        raise UserError(
            f"{command} works with Memento's law only, and the model has the law {spec}: measure it with ghosttrace "
            "bits or ablate"
        )
