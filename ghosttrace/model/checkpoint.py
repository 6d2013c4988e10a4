"""Loading a checkpoint with what belongs to it: tokenizer, markup and policy.

The policy is a part of a checkpoint: it must match the training. It is stored in config.json, under
the key `ghosttrace`, so that it goes wherever the model goes, and `load` reads it from there.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy
from ghosttrace.law.markup import Markup
from ghosttrace.model.prompts import chat_prompt

BUNDLED_MODELS = {"toy-open", "toy-mixed", "toy-sealed"}
CONFIG_KEY = "ghosttrace"


@dataclass(frozen=True)
class Checkpoint:
    """A model that erases.

    Attributes:
        name: as the user gave it.
        model: in evaluation mode, on its device.
        tokenizer: its tokenizer.
        markup: ids of the delimiters and of the assistant's header.
        policy: the law it was trained under.
        stages: of `ghosttrace sft`, in order, as far as they are recorded.
    """

    name: str
    model: PreTrainedModel
    tokenizer: Any
    markup: Markup
    policy: Policy
    stages: tuple[str, ...] = ()

    @property
    def sealed(self) -> bool:
        """It was last trained over sealed caches: decode it with the arm `restart`."""
        return self.stages[-1:] == ("sealed",)

    def prompt_ids(self, message: str) -> list[int]:
        """A user's message in the model's chat format, up to where the assistant begins."""
        text = chat_prompt(self.tokenizer, self.model.config.model_type, message)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def resolve_pretrained_path(name: str) -> str:
    """Where a bundled name, folder or hub id is read from."""
    return str(Path(__file__).parents[1] / "checkpoints" / name) if name in BUNDLED_MODELS else name


def load_config(name: str) -> PreTrainedConfig:
    """The config of a bundled model, folder or hub id.

    Raises:
        UserError: there is no such model.
    """
    try:
        return AutoConfig.from_pretrained(resolve_pretrained_path(name))
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(BUNDLED_MODELS))
        raise UserError(
            f"no model {name!r}: give a bundled name ({known}), a folder with a config.json, "
            "or a hub id that this machine can reach"
        ) from error


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a bundled model, folder or hub id.

    Raises:
        UserError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(resolve_pretrained_path(name))
    except (OSError, ValueError) as error:
        raise UserError(
            f"no tokenizer in {name!r}: put tokenizer.json and tokenizer_config.json beside the model"
        ) from error


def recorded_policy(config: PreTrainedConfig) -> dict[str, Any] | None:
    """The policy a checkpoint carries, if it carries one."""
    return (getattr(config, CONFIG_KEY, None) or {}).get("policy")


def resolve_policy(recorded: Mapping[str, Any] | None, **overrides: Any) -> Policy:
    """The recorded policy with what the user gave explicitly on top (None: not given).

    Args:
        recorded: what `recorded_policy` found.
        overrides: fields of `Policy`.

    Raises:
        UserError: `mask_delimiters` is neither recorded nor given, or a field is unknown.
    """
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
    """What a checkpoint's config and tokenizer say of its law: markup, policy, and the stages of its training.

    Args:
        name: of the checkpoint, for messages.
        config, tokenizer: its own.
        delimiters: other spellings of the delimiter tokens.
        policy: fields of `Policy` that override what the checkpoint records.

    Raises:
        UserError: no delimiters, no chat template, or no policy.
    """
    record = getattr(config, CONFIG_KEY, None) or {}
    markup = Markup.from_tokenizer(tokenizer, record.get("delimiters", {}) | (delimiters or {}))
    law = resolve_policy(recorded_policy(config), **policy)
    if law.require_assistant_section and not markup.assistant_header:
        raise UserError(f"{name} has no chat template: put chat_template.jinja beside its tokenizer")
    return markup, law, tuple(record.get("stages", ()))


def load(
    name: str | Path,
    device: str | None = None,
    dtype: str | None = None,
    delimiters: Mapping[str, str] | None = None,
    **policy: Any,
) -> Checkpoint:
    """Load a checkpoint.

    Args:
        name: a bundled name (`toy-mixed`, `toy-open`, `toy-sealed`), a folder, or a hub id.
        device: where to; a GPU where there is one unless told otherwise.
        dtype: `float32`, `bfloat16` or `float16`; the checkpoint's own unless told otherwise.
        delimiters: other spellings of the delimiter tokens.
        policy: fields of `Policy` that override what the checkpoint records.

    Raises:
        UserError: no such model, no weights, no delimiters, no chat template, or no policy.
    """
    name = str(name)
    config, tokenizer = load_config(name), load_tokenizer(name)
    markup, law, stages = read_erasure_config(name, config, tokenizer, delimiters, **policy)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(resolve_pretrained_path(name), dtype=dtype or "auto")
    except (OSError, ValueError) as error:
        raise UserError(f"{name} has a config but no weights that fit it: put model.safetensors beside it") from error
    model = model.to(device).eval().requires_grad_(False)
    return Checkpoint(name, model, tokenizer, markup, law, stages)


def as_checkpoint(model: str | Path | Checkpoint) -> Checkpoint:
    """A checkpoint by name or folder, or as it is.

    Raises:
        UserError: see `load`.
    """
    return model if isinstance(model, Checkpoint) else load(model)


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        UserError: torch cannot use it.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} cannot be used here: try --device cpu") from error


def fingerprint(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256 of the weights and of the tokenizer's vocabulary, as recorded with every run."""
    weights = sha256()
    for name, tensor in sorted(checkpoint.model.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    vocabulary = sha256(repr(sorted(checkpoint.tokenizer.get_vocab().items())).encode())
    return {"model": weights.hexdigest(), "tokenizer": vocabulary.hexdigest()}
