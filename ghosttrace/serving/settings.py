"""Erasure settings of a server: set for the engine in `additional_config`, overridden per request in `extra_args`."""

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import MementoLaw, Policy
from ghosttrace.law.law import Law
from ghosttrace.law.markup import Markup
from ghosttrace.law.parse import law_from_dict
from ghosttrace.serving.paging import PAGED_ARMS, RECOMPUTING_ARMS, PagedArm, SlotTracker

CONFIG_KEY = "ghosttrace"
OVERRIDE_PREFIX = "ghosttrace_"  # over HTTP, extra arguments are one flat mapping
MAX_INTEGER = 2**31 - 1  # engines keep counts of tokens in 32 bits
REQUEST_OVERRIDES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "arm": (lambda value: value in PAGED_ARMS, f"one of {', '.join(PAGED_ARMS)}"),
    "keep_last_n_blocks": (
        lambda value: type(value) is int and -1 <= value <= MAX_INTEGER,
        "-1 (never erase), 0, or a number of blocks to keep",
    ),
    "keep_last_block_for_answer": (lambda value: value in (0, 1), "0 or 1"),
    "max_block_tokens": (
        lambda value: type(value) is int and 1 <= value <= MAX_INTEGER,
        f"an integer of at least 1 and at most {MAX_INTEGER}",
    ),
    "harness": (callable, "a callable, which only Python requests can pass"),
    "draws": (callable, "a callable, which only Python requests can pass"),
}
"""Settings that a request may override: a function that validates the value, and a description of valid values."""
BLOCK_OVERRIDES = ("keep_last_n_blocks", "keep_last_block_for_answer", "max_block_tokens")
"""Settings that are about blocks, which only Memento's law knows."""


@dataclass(frozen=True)
class ServingSettings:
    """Erasure settings of an engine, or of a request after its overrides.

    Attributes:
        markup: token ids of the delimiters and of the assistant's header.
        policy: when blocks expire.
        arm: how tokens are erased.
        max_block_tokens: number of tokens in a block after which `<|block_end|>` is forced; None for no limit.
        harness: function called with the `ExpiryTracker` before each token of the response; returns a token id to
            force, or None. Only for requests from Python.
        draws: function called with (index of the token in the response, logits float[V]); returns the sampled token id.
            Only for requests from Python.
        other_law: another law than Memento's. `policy` then erases no block.

    Raises:
        UserError: if `arm` or `max_block_tokens` is invalid, or the law replays recorded tokens only.
    """

    markup: Markup
    policy: Policy
    arm: PagedArm = "memento"
    max_block_tokens: int | None = None
    harness: Any = None
    draws: Any = None
    other_law: Law | None = None

    def __post_init__(self) -> None:
        if self.arm not in PAGED_ARMS:
            raise UserError(f"arm must be one of {', '.join(PAGED_ARMS)}, not {self.arm!r}")
        if self.max_block_tokens is not None and self.max_block_tokens < 1:
            raise UserError("max_block_tokens must be at least 1")
        if self.other_law is not None and self.other_law.replayed:
            raise UserError(
                f"{self.law.spec} replays recorded tokens and cannot generate: measure it with ghosttrace bits"
            )
        if self.other_law is not None and self.max_block_tokens is not None:
            raise UserError(
                f"max_block_tokens limits blocks, which the law {self.law.spec} does not know: leave it out"
            )

    @property
    def law(self) -> Law:
        """Return the law of eviction: `other_law`, or Memento's under `policy`."""
        return self.other_law or MementoLaw(self.markup, self.policy)

    @property
    def needs_sampled_token(self) -> bool:
        """Return whether the next step depends on the last sampled token, which excludes asynchronous scheduling."""
        return self.arm in RECOMPUTING_ARMS or not self.law.erases_after_reading

    @property
    def forces_tokens(self) -> bool:
        """Return whether the logits processor may choose a token instead of the engine's sampler."""
        return any(setting is not None for setting in (self.max_block_tokens, self.harness, self.draws))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-serialisable values for `additional_config`."""
        scalars = {"arm": self.arm, "max_block_tokens": self.max_block_tokens}
        law = self.other_law and self.other_law.to_dict()
        return {"markup": asdict(self.markup), "policy": self.policy.to_dict(), "law": law, **scalars}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "ServingSettings":
        """Return the settings from the values that `to_dict` returned."""
        return cls(
            Markup.from_dict(stored["markup"]),
            Policy(**stored["policy"]),
            stored["arm"],
            stored["max_block_tokens"],
            other_law=stored["law"] and law_from_dict(stored["law"]),
        )

    @classmethod
    def from_vllm_config(cls, vllm_config: Any) -> "ServingSettings":
        """Return the settings of an engine from its vLLM configuration.

        Raises:
            UserError: if the configuration has no settings.
        """
        stored = (vllm_config.additional_config or {}).get(CONFIG_KEY)
        if stored is None:
            raise UserError(
                "the engine has GhostTrace's scheduler or worker, but not its settings: start it with "
                "`LLM(**ghosttrace.serving.vllm.engine_args.engine_args(MODEL))` or `ghosttrace serve`"
            )
        return cls.from_dict(stored)

    def with_overrides(self, extra_args: Mapping[str, Any] | None) -> "ServingSettings":
        """Return the settings with the overrides of a request, which `check_overrides` must have accepted."""
        overrides = read_overrides(extra_args)
        policy_names = {field.name for field in fields(Policy)} & overrides.keys()
        policy = replace(self.policy, **{name: overrides[name] for name in policy_names})
        return replace(self, policy=policy, **{name: overrides[name] for name in overrides.keys() - policy_names})

    def make_slot_tracker(self) -> SlotTracker:
        """Return a slot tracker for a new request with these settings."""
        return SlotTracker(self.law, self.arm)


def check_overrides(
    extra_args: Mapping[str, Any] | None,
    async_scheduling: bool,
    recomputes: bool = False,
    prompt_logprobs: bool = False,
    other_law: bool = False,
) -> None:
    """Raise an error if the overrides of a request are invalid or not supported by the engine.

    Args:
        extra_args: extra arguments of the request; names without the prefix `ghosttrace_` are ignored.
        async_scheduling: whether the engine may schedule a step before the previous step's tokens are known.
        recomputes: whether the engine's own arm computes some tokens twice or never.
        prompt_logprobs: whether the request asks for log-probabilities of its prompt.
        other_law: whether the engine has another law than Memento's.

    Raises:
        UserError: if an override is unknown, has an invalid value, or is not supported by the engine.
    """
    overrides = read_overrides(extra_args)
    for name, value in overrides.items():
        if name not in REQUEST_OVERRIDES:
            known = ", ".join(OVERRIDE_PREFIX + override for override in REQUEST_OVERRIDES)
            raise UserError(f"unknown request argument {OVERRIDE_PREFIX}{name}: use one of {known}")
        is_valid, description = REQUEST_OVERRIDES[name]
        if not is_valid(value):
            raise UserError(f"{OVERRIDE_PREFIX}{name} must be {description}, not {reprlib.repr(value)}")
    about_blocks = [name for name in BLOCK_OVERRIDES if name in overrides]
    if other_law and about_blocks:
        name = f"{OVERRIDE_PREFIX}{about_blocks[0]}"
        raise UserError(f"{name} is about blocks, which the law of this server does not know: leave it out")
    if prompt_logprobs and overrides.get("arm", RECOMPUTING_ARMS[0] if recomputes else None) in RECOMPUTING_ARMS:
        raise UserError(
            f"the arms {', '.join(RECOMPUTING_ARMS)} compute some prompt tokens twice or never and have no "
            "prompt_logprobs (or echo with logprobs): leave these out, or choose another ghosttrace_arm"
        )
    if async_scheduling and (overrides.get("arm") in RECOMPUTING_ARMS or overrides.get("keep_last_block_for_answer")):
        raise UserError(
            "the overrides of this request do not work with asynchronous scheduling: start the engine with "
            "--no-async-scheduling"
        )


def read_overrides(extra_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the overrides among the extra arguments, without their prefix."""
    items = (extra_args or {}).items()
    return {name.removeprefix(OVERRIDE_PREFIX): value for name, value in items if name.startswith(OVERRIDE_PREFIX)}
