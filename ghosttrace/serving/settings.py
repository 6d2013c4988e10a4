"""What an engine is told about the law: through `additional_config`, and request by request through `extra_args`."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy
from ghosttrace.law.markup import Markup
from ghosttrace.serving.paging import ARMS, REREADING, Arm, Paging

KEY = "ghosttrace"
PREFIX = "ghosttrace_"  # of a request's extra arguments, which are flat over HTTP
WISHES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "arm": (lambda value: value in ARMS, f"one of {', '.join(ARMS)}"),
    "keep_last_n_blocks": (
        lambda value: type(value) is int and value >= -1,
        "-1 (never erase), 0, or a number to keep",
    ),
    "keep_last_block_for_answer": (lambda value: value in (0, 1), "0 or 1"),
    "max_block_tokens": (lambda value: type(value) is int and value >= 1, "a number of at least 1"),
    "harness": (callable, "a callable, and so from Python alone"),
    "draws": (callable, "a callable, and so from Python alone"),
}


@dataclass(frozen=True)
class Settings:
    """The law of an engine or, with a request's own wishes on top, of a request.

    Attributes:
        markup: ids of the delimiters.
        policy: when blocks expire.
        arm: how they leave.
        max_block_tokens: `<|block_end|>` is forced after so many tokens of a block.
        harness: a callable that is asked before every token of a response for one to put in; only from Python.
        draws: (number of the response's token, logits) to the token that is chosen; only from Python.
    """

    markup: Markup
    policy: Policy
    arm: Arm = "memento"
    max_block_tokens: int | None = None
    harness: Any = None
    draws: Any = None

    def __post_init__(self) -> None:
        if self.arm not in ARMS:
            raise UserError(f"arm is one of {', '.join(ARMS)}, not {self.arm!r}")
        if self.max_block_tokens is not None and self.max_block_tokens < 1:
            raise UserError("max_block_tokens is at least 1")

    @property
    def needs_tokens(self) -> bool:
        """The token just written decides whether the next one may be read: asynchronous scheduling is too late."""
        return self.arm in REREADING or not self.policy.erases_after_reading

    @property
    def forces(self) -> bool:
        """Some tokens are not the model's choice."""
        return any(one is not None for one in (self.max_block_tokens, self.harness, self.draws))

    def to_dict(self) -> dict[str, Any]:
        """As it stands in `additional_config`."""
        plain = {"arm": self.arm, "max_block_tokens": self.max_block_tokens}
        return {"markup": asdict(self.markup), "policy": self.policy.to_dict(), **plain}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Settings":
        """The inverse of `to_dict`."""
        markup = dict(stored["markup"])
        markup["assistant_header"] = tuple(markup["assistant_header"])
        return cls(Markup(**markup), Policy(**stored["policy"]), stored["arm"], stored["max_block_tokens"])

    @classmethod
    def of(cls, vllm_config: Any) -> "Settings":
        """What an engine was started with.

        Raises:
            UserError: it was not told.
        """
        stored = (vllm_config.additional_config or {}).get(KEY)
        if stored is None:
            raise UserError(
                "the engine was given ghosttrace's scheduler or worker without its settings: "
                "start it with `LLM(**ghosttrace.serving.vllm.engine(MODEL))` or `ghosttrace serve`"
            )
        return cls.from_dict(stored)

    def wished(self, extra_args: Mapping[str, Any] | None) -> "Settings":
        """The same with what a request asks for on top; `check_wishes` has seen it."""
        wishes = _wishes(extra_args)
        law = {field.name for field in fields(Policy)} & wishes.keys()
        policy = replace(self.policy, **{name: wishes[name] for name in law})
        return replace(self, policy=policy, **{name: wishes[name] for name in wishes.keys() - law})

    def paging(self) -> Paging:
        """A request's slots under this law."""
        return Paging(self.markup, self.policy, self.arm)


def check_wishes(
    extra_args: Mapping[str, Any] | None, ahead: bool, rereading: bool = False, whole_prompt: bool = False
) -> None:
    """Refuse a request that asks for what cannot be had.

    Args:
        extra_args: the request's; only what begins with `ghosttrace_` is read.
        ahead: the engine may schedule ahead of its tokens.
        rereading: requests that choose no arm read some tokens twice, or never.
        whole_prompt: it wants log-probabilities of its prompt.

    Raises:
        UserError: an unknown wish, a value that it cannot have, or one that the engine cannot fulfil.
    """
    wishes = _wishes(extra_args)
    for name, value in wishes.items():
        if name not in WISHES:
            known = ", ".join(PREFIX + wish for wish in WISHES)
            raise UserError(f"a request has no argument {PREFIX}{name}: there are {known}")
        fits, needed = WISHES[name]
        if not fits(value):
            raise UserError(f"{PREFIX}{name} is {needed}, not {value!r}")
    if whole_prompt and wishes.get("arm", REREADING[0] if rereading else None) in REREADING:
        raise UserError(
            f"under {', '.join(REREADING)} some tokens of a prompt are read twice or never, so that it has no "
            "prompt_logprobs (or echo with logprobs): leave these out, or choose another ghosttrace_arm"
        )
    if ahead and (wishes.get("arm") in REREADING or wishes.get("keep_last_block_for_answer")):
        raise UserError(
            "this engine schedules ahead of its tokens, which the request does not allow: start it with "
            "--no-async-scheduling"
        )


def _wishes(extra_args: Mapping[str, Any] | None) -> dict[str, Any]:
    given = (extra_args or {}).items()
    return {name.removeprefix(PREFIX): value for name, value in given if name.startswith(PREFIX)}
