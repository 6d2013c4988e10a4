"""The operator's permissions: what a request may choose of the erasure settings of a server."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ghosttrace.errors import UserError
from ghosttrace.law.law import KeepAll
from ghosttrace.law.parse import MEMENTO, is_memento
from ghosttrace.serving.paging import PAGED_ARMS, SEALED_ARMS, PagedArm
from ghosttrace.serving.settings import ServingSettings, check_overrides, read_overrides

REFUSED_PARAMETERS = {
    "kv_transfer_params": "may replace the prompt by token ids that the guard has not seen",
    "ec_transfer_params": "is for servers that share caches, which erasure excludes",
    "prompt_embeds": "has no tokens in which blocks can be found",
    "truncate_prompt_tokens": "may cut off the assistant's header, without which nothing is erased",
    "truncation": "may cut off the assistant's header, without which nothing is erased",
}
"""Parameters of vLLM's requests with which erasure or the guard would be wrong, and the reason."""

ALLOW_FLAG = "--allow-request-arms"


@dataclass(frozen=True)
class RequestPermissions:
    """Erasure settings of a server, and the arms that requests may choose instead.

    A request may always choose the server's own arm and a policy that erases at least as much. `full` in `request_arms`
    also permits every policy, because a request that never erases sees as much as with any of them.

    Attributes:
        arm: arm of requests that choose none.
        keep_last_n_blocks: number of blocks that the server keeps; -1 keeps all.
        keep_last_block_for_answer: whether the server keeps a finished block until the next block.
        max_block_tokens: number of tokens after which the server ends a block; None for no limit.
        request_arms: other arms that a request may choose.
        law: specification of the server's law. Under another law than Memento's there are no blocks to keep.
    """

    arm: PagedArm
    keep_last_n_blocks: int
    keep_last_block_for_answer: bool
    max_block_tokens: int | None
    request_arms: tuple[PagedArm, ...] = ()
    law: str = MEMENTO

    @classmethod
    def from_settings(cls, settings: ServingSettings, request_arms: Sequence[PagedArm] = ()) -> "RequestPermissions":
        """Return the permissions of a server with these erasure settings."""
        policy = settings.policy
        kept = policy.keep_last_n_blocks, policy.keep_last_block_for_answer
        return cls(settings.arm, *kept, settings.max_block_tokens, tuple(request_arms), settings.law.spec)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "RequestPermissions":
        """Return the permissions from the values of `dataclasses.asdict`."""
        return cls(**{**stored, "request_arms": tuple(stored["request_arms"])})

    @property
    def sealed(self) -> bool:
        """Return whether no request can retain keys and values that have seen an erased token."""
        erases = self.keep_last_n_blocks >= 0 if is_memento(self.law) else self.law != KeepAll.name
        return erases and {self.arm, *self.request_arms} <= set(SEALED_ARMS)

    def describe(self) -> dict[str, Any]:
        """Return what `/v1/models` says about erasure."""
        described = {"law": self.law, "arm": self.arm, "sealed": self.sealed, "request_arms": list(self.request_arms)}
        return described | ({"keep_last_n_blocks": self.keep_last_n_blocks} if is_memento(self.law) else {})

    def check_body(self, body: Mapping[str, Any]) -> None:
        """Raise an error if a request chooses what it may not choose, or has a parameter that evades erasure.

        Args:
            body: the parsed body of the request.

        Raises:
            UserError: if `check` raises it, a parameter is in `REFUSED_PARAMETERS`, the response would not be the
                assistant's turn, or beam search, which drops the overrides of a request, is to run with some.
        """
        for name, reason in REFUSED_PARAMETERS.items():
            if body.get(name) not in (None, "disabled" if name == "truncation" else None):
                raise UserError(f"{name} {reason}: leave it out")
        _check_response_turn(body)
        overrides = body.get("vllm_xargs")
        if not isinstance(overrides, dict):
            return
        self.check(overrides)
        if body.get("use_beam_search") and read_overrides(overrides):
            raise UserError("use_beam_search ignores the ghosttrace_ arguments of a request: leave out one of them")

    def check(self, extra_args: Mapping[str, Any] | None) -> None:
        """Raise an error if a request chooses what it may not choose.

        Args:
            extra_args: the `vllm_xargs` of the request.

        Raises:
            UserError: if an override is invalid, or weaker than the server's own setting and not permitted.
        """
        check_overrides(extra_args, async_scheduling=False, other_law=not is_memento(self.law))
        chosen = read_overrides(extra_args)
        arm = chosen.get("arm", self.arm)
        if arm not in (self.arm, *self.request_arms):
            permitted = ", ".join((self.arm, *self.request_arms))
            raise UserError(f"ghosttrace_arm {arm!r} is not permitted by this server: choose one of {permitted}")
        if "full" in self.request_arms:
            return
        block_limit = self.max_block_tokens or math.inf
        weaker = {
            "keep_last_n_blocks": _kept(chosen.get("keep_last_n_blocks", 0)) > _kept(self.keep_last_n_blocks),
            "keep_last_block_for_answer": (
                chosen.get("keep_last_block_for_answer", False) and not self.keep_last_block_for_answer
            ),
            "max_block_tokens": chosen.get("max_block_tokens", 0) > block_limit,
        }
        for name, is_weaker in weaker.items():
            if is_weaker:
                raise UserError(
                    f"ghosttrace_{name} {chosen[name]!r} is not permitted by this server, whose own is "
                    f"{getattr(self, name)}: leave it out"
                )


def _check_response_turn(body: Mapping[str, Any]) -> None:
    """Raise an error if the response would not be the assistant's turn, in which alone blocks are erased.

    Raises:
        UserError: if the assistant's header is left out, or a message of somebody else is continued.
    """
    template = body.get("chat_template_kwargs")
    template = template if isinstance(template, Mapping) else {}
    if template.get("continue_final_message") not in (None, False):
        raise UserError("continue_final_message is no argument of the chat template: put it beside the messages")
    continued = body.get("continue_final_message") not in (None, False)
    if continued and not _ends_with_assistant(body.get("messages")):
        raise UserError("continue_final_message needs a last message of the assistant: leave it out")
    adds_header = [source.get("add_generation_prompt") in (None, True) for source in (body, template)]
    if not all(adds_header) and not continued:
        raise UserError("add_generation_prompt must be true unless an assistant message is continued: leave it out")


def _ends_with_assistant(messages: Any) -> bool:
    """Return whether the last message of a conversation, or of each of several, is the assistant's."""
    last = messages[-1] if isinstance(messages, list) and messages else None
    if isinstance(last, list):
        return all(isinstance(conversation, list) and _ends_with_assistant(conversation) for conversation in messages)
    return isinstance(last, Mapping) and last.get("role") == "assistant"


def parse_request_arms(text: str | None) -> tuple[PagedArm, ...]:
    """Return the arms in the value of `--allow-request-arms`.

    Raises:
        UserError: if one of them is unknown.
    """
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    for name in names:
        if name not in PAGED_ARMS:
            raise UserError(f"{ALLOW_FLAG} must be a list of {', '.join(PAGED_ARMS)}, not {name!r}")
    return tuple(arm for arm in PAGED_ARMS if arm in names)


def _kept(keep_last_n_blocks: int) -> float:
    return math.inf if keep_last_n_blocks < 0 else keep_last_n_blocks
