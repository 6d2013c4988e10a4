"""The law of a server: set for an engine in `additional_config`, overridden for a request in `extra_args`."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy
from ghosttrace.law.markup import Markup
from ghosttrace.serving.paging import PAGED_ARMS, RECOMPUTING_ARMS, PagedArm, SlotTracker

CONFIG_KEY = "ghosttrace"
OVERRIDE_PREFIX = "ghosttrace_"  # of a request's extra arguments, which are flat over HTTP
REQUEST_OVERRIDES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "arm": (lambda value: value in PAGED_ARMS, f"one of {', '.join(PAGED_ARMS)}"),
    "keep_last_n_blocks": (
        lambda value: type(value) is int and value >= -1,
        "-1 (never erase), 0, or a number to keep",
    ),
    "keep_last_block_for_answer": (lambda value: value in (0, 1), "0 or 1"),
    "max_block_tokens": (lambda value: type(value) is int and value >= 1, "a number of at least 1"),
    "harness": (callable, "a callable, and so from Python alone"),
    "draws": (callable, "a callable, and so from Python alone"),
}
"""What a request may override: whether a value is valid, and what is valid in words."""


@dataclass(frozen=True)
class ServingSettings:
    """The law of an engine, or with a request's overrides applied, of that request.

    Attributes:
        markup: ids of the delimiters.
        policy: when blocks expire.
        arm: how they leave the cache.
        max_block_tokens: `<|block_end|>` is forced after this many tokens of a block.
        harness: called with the tracker before every token of a response; returns a token to force, or None. From
            Python only.
        draws: called with (index of the token in the response, logits); returns the token to sample. From Python only.
    """

    markup: Markup
    policy: Policy
    arm: PagedArm = "memento"
    max_block_tokens: int | None = None
    harness: Any = None
    draws: Any = None

    def __post_init__(self) -> None:
        if self.arm not in PAGED_ARMS:
            raise UserError(f"arm is one of {', '.join(PAGED_ARMS)}, not {self.arm!r}")
        if self.max_block_tokens is not None and self.max_block_tokens < 1:
            raise UserError("max_block_tokens is at least 1")

    @property
    def needs_sampled_token(self) -> bool:
        """Whether the next step depends on the token just sampled, which rules out asynchronous scheduling."""
        return self.arm in RECOMPUTING_ARMS or not self.policy.erases_after_reading

    @property
    def forces_tokens(self) -> bool:
        """Whether some tokens are not sampled by the engine."""
        return any(one is not None for one in (self.max_block_tokens, self.harness, self.draws))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as they stand in `additional_config`."""
        plain = {"arm": self.arm, "max_block_tokens": self.max_block_tokens}
        return {"markup": asdict(self.markup), "policy": self.policy.to_dict(), **plain}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "ServingSettings":
        """Inverse of `to_dict`."""
        markup = dict(stored["markup"])
        markup["assistant_header"] = tuple(markup["assistant_header"])
        return cls(Markup(**markup), Policy(**stored["policy"]), stored["arm"], stored["max_block_tokens"])

    @classmethod
    def from_vllm_config(cls, vllm_config: Any) -> "ServingSettings":
        """Read the settings that an engine was started with.

        Raises:
            UserError: it was started without any.
        """
        stored = (vllm_config.additional_config or {}).get(CONFIG_KEY)
        if stored is None:
            raise UserError(
                "the engine was given ghosttrace's scheduler or worker without its settings: start it with "
                "`LLM(**ghosttrace.serving.vllm.engine_args.engine_args(MODEL))` or `ghosttrace serve`"
            )
        return cls.from_dict(stored)

    def with_overrides(self, extra_args: Mapping[str, Any] | None) -> "ServingSettings":
        """Return the settings with a request's overrides applied; `check_overrides` must have accepted them."""
        overrides = _overrides(extra_args)
        law = {field.name for field in fields(Policy)} & overrides.keys()
        policy = replace(self.policy, **{name: overrides[name] for name in law})
        return replace(self, policy=policy, **{name: overrides[name] for name in overrides.keys() - law})

    def make_slot_tracker(self) -> SlotTracker:
        """Return the slots of a new request under this law."""
        return SlotTracker(self.markup, self.policy, self.arm)


def check_overrides(
    extra_args: Mapping[str, Any] | None,
    async_scheduling: bool,
    recomputes: bool = False,
    prompt_logprobs: bool = False,
) -> None:
    """Refuse a request whose overrides are wrong or cannot be met.

    Args:
        extra_args: the request's; only names that begin with `ghosttrace_` are read.
        async_scheduling: the engine may schedule a step before the previous step's tokens are known.
        recomputes: the engine's own arm computes some tokens twice, or never.
        prompt_logprobs: the request asks for log-probabilities of its prompt.

    Raises:
        UserError: an unknown override, an invalid value, or one that the engine cannot meet.
    """
    overrides = _overrides(extra_args)
    for name, value in overrides.items():
        if name not in REQUEST_OVERRIDES:
            known = ", ".join(OVERRIDE_PREFIX + one for one in REQUEST_OVERRIDES)
            raise UserError(f"a request has no argument {OVERRIDE_PREFIX}{name}: there are {known}")
        valid, needed = REQUEST_OVERRIDES[name]
        if not valid(value):
            raise UserError(f"{OVERRIDE_PREFIX}{name} is {needed}, not {value!r}")
    if prompt_logprobs and overrides.get("arm", RECOMPUTING_ARMS[0] if recomputes else None) in RECOMPUTING_ARMS:
        raise UserError(
            f"under {', '.join(RECOMPUTING_ARMS)} some tokens of a prompt are read twice or never, so that it has no "
            "prompt_logprobs (or echo with logprobs): leave these out, or choose another ghosttrace_arm"
        )
    if async_scheduling and (overrides.get("arm") in RECOMPUTING_ARMS or overrides.get("keep_last_block_for_answer")):
        raise UserError(
            "this engine schedules ahead of its tokens, which the request does not allow: start it with "
            "--no-async-scheduling"
        )


def _overrides(extra_args: Mapping[str, Any] | None) -> dict[str, Any]:
    given = (extra_args or {}).items()
    return {name.removeprefix(OVERRIDE_PREFIX): value for name, value in given if name.startswith(OVERRIDE_PREFIX)}
