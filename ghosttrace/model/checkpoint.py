"""Loading of checkpoints with tokenizer, markup and law.

The law belongs to a checkpoint and must match its training. Memento's policy, or the specification of another law, is
stored in config.json under the key `ghosttrace`, so that it is copied with the model, and `load` reads it from there. A
stock model records neither, and runs under the law that the user gives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from ghosttrace.errors import UserError
from ghosttrace.law.chat import Chat
from ghosttrace.law.expiry import MementoLaw, Policy
from ghosttrace.law.law import Law
from ghosttrace.law.markup import Markup
from ghosttrace.law.parse import is_memento, parse_law
from ghosttrace.model.adapters import merged_model
from ghosttrace.model.erasure_config import read_block_config, read_erasure_config, recorded_law, require_memento
from ghosttrace.model.prompts import prompt_ids
from ghosttrace.runs.call import python_call

BUNDLED_MODELS = {"toy-open", "toy-mixed", "toy-sealed"}
DOWNLOADED_MODELS = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Models that `make lm` puts into `.models`, with the hub id of the original."""
ADAPTED_MODELS = {"smollm2-open": "smollm2-135m", "smollm2-mixed": "smollm2-open"}
"""Bundled adapters, with the downloaded or adapted model that each changes (see `ghosttrace.model.adapters`)."""


@dataclass(frozen=True)
class Checkpoint:
    """A model with its tokenizer, its markup, and the law under which tokens leave its cache.

    Attributes:
        name: bundled name, folder or hub id, as given by the user.
        model: the model in evaluation mode, on its device.
        tokenizer: the model's tokenizer.
        markup: token ids of the delimiters and of the assistant header.
        policy: when blocks expire, as in training.
        stages: the recorded training stages of `ghosttrace sft`, in order.
        other_law: another law than Memento's. `policy` then erases no block.
        python_text: the call that loads the checkpoint, as text; None if it was made or changed in another way.
    """

    name: str
    model: PreTrainedModel
    tokenizer: Any
    markup: Markup
    policy: Policy
    stages: tuple[str, ...] = ()
    other_law: Law | None = None
    python_text: str | None = field(default=None, init=False, compare=False)  # so `replace` does not copy it

    @property
    def law(self) -> Law:
        """The law of eviction, `other_law` or Memento's under `policy`."""
        return self.other_law or MementoLaw(self.markup, self.policy)

    @cached_property
    def chat(self) -> Chat:
        """Tokens of the model's chat format."""
        return Chat.from_tokenizer(self.tokenizer)

    def with_law(self, spec: str | None) -> "Checkpoint":
        """Return the checkpoint under another law; unchanged for None.

        Args:
            spec: such as `window:64,16`, or `memento` (see `ghosttrace.law.parse.parse_law`).

        Raises:
            UserError: there is no such law, or the checkpoint cannot be run with it.
        """
        if spec is None:
            return self
        if not is_memento(spec):
            policy = replace(self.policy, keep_last_n_blocks=-1)
            text = self.python_text and f"{self.python_text}.with_law({spec!r})"
            return replace(self, policy=policy, other_law=parse_law(spec, self.chat))._with_text(text)
        if self.other_law is not None:
            raise UserError(f"{self.name} was loaded under {self.other_law.spec}: load it again with the law memento")
        return self

    def _with_text(self, text: str | None) -> "Checkpoint":
        """Set the call that loads this checkpoint, and return it."""
        object.__setattr__(self, "python_text", text)
        return self

    @property
    def sealed(self) -> bool:
        """Whether the last training stage used sealed caches; if True, decode the model with the arm `restart`."""
        return self.stages[-1:] in (("sealed",), ("rl-sealed",))

    def prompt_ids(self, message: str | Sequence[Mapping[str, Any]]) -> list[int]:
        """Tokenise a user message in the model's chat format, up to the end of the assistant header.

        Args:
            message: the text of the message, or a whole chat in OpenAI's message format.

        Raises:
            UserError: the chat template refuses the chat.
        """
        return prompt_ids(self.tokenizer, self.model.config.model_type, message)


def resolve_pretrained_path(name: str) -> str:
    """Return the folder of a bundled, adapted or downloaded model; return any other name unchanged.

    Raises:
        UserError: an adapter's base has not been downloaded, or is another revision.
    """
    bundled, downloaded = (Path(__file__).parents[up] / place for up, place in ((1, "checkpoints"), (2, ".models")))
    if name in BUNDLED_MODELS:
        return str(bundled / name)
    if name in ADAPTED_MODELS:
        base = ADAPTED_MODELS[name]
        folder = Path(resolve_pretrained_path(base)) if base in ADAPTED_MODELS else downloaded / base
        return str(merged_model(bundled / name, folder))
    return str(downloaded / name) if name in DOWNLOADED_MODELS else name


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
    names = BUNDLED_MODELS | ADAPTED_MODELS.keys() | DOWNLOADED_MODELS.keys()
    close = [] if name in names or "/" in name or Path(name).exists() else get_close_matches(name, names, 1)
    if close:  # the hub would be asked for it, and without a network again and again
        raise UserError(f"there is no model {name!r}: did you mean {close[0]}?")
    try:
        return AutoConfig.from_pretrained(resolve_pretrained_path(name))
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(BUNDLED_MODELS | ADAPTED_MODELS.keys()))
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


def load(
    name: str | Path,
    device: str | None = None,
    dtype: str | None = None,
    delimiters: Mapping[str, str] | None = None,
    law: str | None = None,
    **policy: Any,
) -> Checkpoint:
    """Load a checkpoint with its tokenizer, markup and law.

    Args:
        name: a bundled name (`toy-mixed`, `toy-open`, `toy-sealed`), a folder, or a hub id.
        device: device of the model; by default a GPU if available, else the CPU.
        dtype: `float32`, `bfloat16` or `float16`; by default the dtype of the stored weights.
        delimiters: other spellings of the delimiter tokens, by the names in `DELIMITERS`.
        law: specification of a law, such as `window:64,16`, that replaces the recorded one.
        policy: fields of `Policy` that override the recorded ones; only under Memento's law.

    Returns:
        The checkpoint, with the model in evaluation mode and without gradients.

    Raises:
        UserError: model, weights, delimiters, chat template or policy are missing, the law cannot hold, or the device
            cannot be used.
    """
    text = python_call(load, locals())
    name = str(name)
    config, tokenizer = load_config(name), load_tokenizer(name)
    spec = law or recorded_law(config)
    if is_memento(spec):
        other_law = None
        markup, resolved, stages = read_erasure_config(name, config, tokenizer, delimiters, **policy)
    else:
        other_law = parse_law(str(spec), Chat.from_tokenizer(tokenizer))
        markup, resolved, stages = read_block_config(str(spec), config, tokenizer, delimiters, **policy)
    model = load_weights(name, device, dtype)
    return Checkpoint(name, model, tokenizer, markup, resolved, stages, other_law)._with_text(text)


def load_weights(name: str, device: str | None = None, dtype: str | None = None) -> PreTrainedModel:
    """Load a model in evaluation mode and without gradients; the arguments are those of `load`.

    Raises:
        UserError: the model has no weights, or the device cannot be used.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(resolve_pretrained_path(name), dtype=dtype or "auto")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name} has a config but no weights that match it: put model.safetensors into its folder"
        ) from error
    loaded: PreTrainedModel = model.to(device).eval().requires_grad_(False)
    return loaded


def as_checkpoint(model: str | Path | Checkpoint, law: str | None = None) -> Checkpoint:
    """Load a checkpoint by name or folder; return a `Checkpoint` under a law, or unchanged without one.

    Raises:
        UserError: see `load` and `Checkpoint.with_law`.
    """
    return model.with_law(law) if isinstance(model, Checkpoint) else load(model, law=law)


def as_memento_checkpoint(model: str | Path | Checkpoint, command: str) -> Checkpoint:
    """Load a checkpoint for a command that measures Memento's blocks only.

    Args:
        model: see `as_checkpoint`.
        command: name of the command, for the message.

    Raises:
        UserError: the checkpoint has another law; or see `load`.
    """
    checkpoint = as_checkpoint(model)
    require_memento(checkpoint.law.spec, command)
    return checkpoint


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
