"""Loading of checkpoints with tokenizer, markup and policy.

The policy belongs to a checkpoint and must match its training. It is stored in config.json under the key
`ghosttrace`, so that it is copied with the model, and `load` reads it from there.
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
DOWNLOADED_MODELS = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Models that `make lm` puts into `.models`, with the hub id of the original."""
CONFIG_KEY = "ghosttrace"


@dataclass(frozen=True)
class Checkpoint:
    """A model with memento attention, with its tokenizer, markup and policy.

    Attributes:
        name: bundled name, folder or hub id, as given by the user.
        model: the model in evaluation mode, on its device.
        tokenizer: the model's tokenizer.
        markup: token ids of the delimiters and of the assistant header.
        policy: when blocks expire, as in training.
        stages: the recorded training stages of `ghosttrace sft`, in order.
    """

    name: str
    model: PreTrainedModel
    tokenizer: Any
    markup: Markup
    policy: Policy
    stages: tuple[str, ...] = ()

    @property
    def sealed(self) -> bool:
        """Whether the last training stage used sealed caches; if True, decode the model with the arm `restart`."""
        return self.stages[-1:] == ("sealed",)

    def prompt_ids(self, message: str) -> list[int]:
        """Tokenise a user message in the model's chat format, up to the end of the assistant header."""
        text = chat_prompt(self.tokenizer, self.model.config.model_type, message)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def resolve_pretrained_path(name: str) -> str:
    """Return the folder of a bundled or downloaded model; return any other name (a folder or a hub id) unchanged."""
    if name in BUNDLED_MODELS:
        return str(Path(__file__).parents[1] / "checkpoints" / name)
    return str(Path(__file__).parents[2] / ".models" / name) if name in DOWNLOADED_MODELS else name


def load_config(name: str) -> PreTrainedConfig:
    """Load the config of a bundled or downloaded model, folder or hub id.

    Raises:
        UserError: there is no such model, or it has not been downloaded.
    """
    if name in DOWNLOADED_MODELS and not Path(resolve_pretrained_path(name)).exists():
        raise UserError(
            f"{name} has not been downloaded: run `make lm` in a checkout of this project, or give the hub id "
            f"{DOWNLOADED_MODELS[name]}"
        )
    try:
        return AutoConfig.from_pretrained(resolve_pretrained_path(name))
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(BUNDLED_MODELS))
        raise UserError(
            f"there is no model {name!r}: give a bundled name ({known}), a folder with a config.json, "
            "or a hub id that this machine can reach"
        ) from error


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of a bundled model, folder or hub id.

    Raises:
        UserError: there is no tokenizer.
    """
    try:
        return AutoTokenizer.from_pretrained(resolve_pretrained_path(name))
    except (OSError, ValueError) as error:
        raise UserError(
            f"there is no tokenizer in {name!r}: put tokenizer.json and tokenizer_config.json into the model's folder"
        ) from error


def recorded_policy(config: PreTrainedConfig) -> dict[str, Any] | None:
    """Return the policy recorded in a checkpoint's config, or None."""
    return (getattr(config, CONFIG_KEY, None) or {}).get("policy")


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


def load(
    name: str | Path,
    device: str | None = None,
    dtype: str | None = None,
    delimiters: Mapping[str, str] | None = None,
    **policy: Any,
) -> Checkpoint:
    """Load a checkpoint with its tokenizer, markup and policy.

    Args:
        name: a bundled name (`toy-mixed`, `toy-open`, `toy-sealed`), a folder, or a hub id.
        device: device of the model; by default a GPU if available, else the CPU.
        dtype: `float32`, `bfloat16` or `float16`; by default the dtype of the stored weights.
        delimiters: other spellings of the delimiter tokens, by the names in `DELIMITERS`.
        policy: fields of `Policy` that override the recorded ones.

    Returns:
        The checkpoint, with the model in evaluation mode and without gradients.

    Raises:
        UserError: model, weights, delimiters, chat template or policy are missing, or the device cannot be used.
    """
    name = str(name)
    config, tokenizer = load_config(name), load_tokenizer(name)
    markup, resolved, stages = read_erasure_config(name, config, tokenizer, delimiters, **policy)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(resolve_pretrained_path(name), dtype=dtype or "auto")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name} has a config but no weights that match it: put model.safetensors into its folder"
        ) from error
    model = model.to(device).eval().requires_grad_(False)
    return Checkpoint(name, model, tokenizer, markup, resolved, stages)


def as_checkpoint(model: str | Path | Checkpoint) -> Checkpoint:
    """Load a checkpoint by name or folder; return a `Checkpoint` unchanged.

    Raises:
        UserError: see `load`.
    """
    return model if isinstance(model, Checkpoint) else load(model)


def check_device(device: str) -> None:
    """Check that torch can use a device.

    Raises:
        UserError: torch cannot use the device.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} cannot be used here: try --device cpu") from error


def fingerprint(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the SHA-256 of the weights (`model`) and of the vocabulary (`tokenizer`), as recorded in run.json."""
    weights = sha256()
    for name, tensor in sorted(checkpoint.model.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    vocabulary = sha256(repr(sorted(checkpoint.tokenizer.get_vocab().items())).encode())
    return {"model": weights.hexdigest(), "tokenizer": vocabulary.hexdigest()}
