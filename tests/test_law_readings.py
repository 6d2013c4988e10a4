"""Every law on tiny models: masked pass, eviction, arms and sealed layout agree, and equal slow references."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.families import tiny
from helpers.laws import LAWS, MARKUP, chat_trace
from torch import Tensor
from transformers import DynamicCache

from ghosttrace.ablation.arms import (
    Arm,
    Full,
    Memento,
    Noise,
    Part,
    PlaceboArm,
    Rerotated,
    Restart,
    RestartBare,
    RestartRenumbered,
    SealMementos,
    Swap,
)
from ghosttrace.errors import UserError
from ghosttrace.law.chat import Chat
from ghosttrace.law.expiry import NEVER, Policy, alive, expiry
from ghosttrace.law.law import KeepAll, Law
from ghosttrace.law.layout import Layout, sealed_layout
from ghosttrace.law.masks import Visibility
from ghosttrace.law.parse import parse_law
from ghosttrace.model.attention import attending, pad_batch
from ghosttrace.model.generate import Request, generate
from ghosttrace.model.sampling import Sampling
from ghosttrace.model.session import Session
from ghosttrace.model.states import model_inputs

POLICY = Policy(True, keep_last_n_blocks=-1)
TRACE = chat_trace(0)
NAMES = [name for name in LAWS if name != "none"]
DIFFERENT = ["window", "sinks", "tools-1", "log"]  # laws as different as possible, where all would take too long


def replay(family: str, arm: Arm, law: Law, tokens: list[int] = TRACE, size: int = 7) -> tuple[Session, Tensor]:
    """Feed a trace to a session under an arm; return the session and the log-probabilities after every token."""
    with attending(tiny(family)) as model:
        session = Session(model, MARKUP, POLICY, [(0,)], arm.eraser, arm.adapt_law(law))
        parts = [
            session.advance([tokens[begin : begin + size]], all_logits=True)[0] for begin in range(0, len(tokens), size)
        ]
    return session, torch.cat(parts).log_softmax(-1)


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "family"), [*((name, "qwen3") for name in LAWS), *((name, "olmo3") for name in DIFFERENT)]
)
def test_eviction_equals_masking_and_follows_the_law(name: str, family: str) -> None:
    law = LAWS[name].law(TRACE)
    times = expiry(TRACE, law)
    session, evicted = replay(family, Memento(), law)
    with attending(tiny(family)) as model:
        masked = model(**pad_batch([TRACE], [times], pad_id=0).inputs, use_cache=False).logits[0].log_softmax(-1)
    assert_equal(evicted, masked)
    assert session.rows[0].kv_tokens == alive(times).tolist()
    np.testing.assert_array_equal(session.cache.held_indices(0), np.flatnonzero(times > len(TRACE)))
    if name != "none":
        _, unerased = replay(family, Full(), law)
        assert (evicted - unerased).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "renumber"), [*((name, False) for name in NAMES), *((name, True) for name in DIFFERENT)]
)
def test_restart_equals_a_fresh_pass_over_the_retained_tokens(name: str, renumber: bool) -> None:
    """After an erasure, the prediction is that of one stock pass over the retained tokens alone."""
    law, arm = LAWS[name].law(TRACE), RestartRenumbered() if renumber else Restart()
    ends = sorted({erasure.expires_at for erasure in law.erasures(TRACE[:-1])})
    for end in {ends[0], ends[len(ends) // 2], ends[-1]}:
        tokens = TRACE[:end]
        session, logp = replay("qwen3", arm, law, tokens)
        held = np.flatnonzero(expiry(tokens, law) > end)
        np.testing.assert_array_equal(session.cache.held_indices(0), held)
        index, position = torch.arange(len(held))[None], torch.from_numpy(np.arange(len(held)) if renumber else held)
        with attending(tiny("qwen3")) as model:
            causal = Visibility(index, index, torch.full_like(index, NEVER), position[None], position[None])
            text = torch.tensor([[tokens[key] for key in held]])
            fresh = model(input_ids=text, position_ids=position[None], use_cache=False, expiry=causal).logits[0, -1]
        assert_equal(logp[-1], fresh.log_softmax(-1))


def predicting_columns(layout: Layout, length: int) -> list[int]:
    """Return, for each token, the last column that holds it before the next token begins."""
    first = {int(index): column for column, index in reversed(list(enumerate(layout.token_index)))}
    ends = [first.get(index + 1, len(layout.tokens)) for index in range(length)]
    return [int(np.flatnonzero(layout.token_index[:end] == index)[-1]) for index, end in enumerate(ends)]


@pytest.mark.parametrize(
    ("name", "family"),
    [*((name, "qwen3") for name in NAMES if name != "memento-last-1"), ("window", "olmo3"), ("log", "olmo3")],
)
@pytest.mark.parametrize("arm", [Restart(), RestartRenumbered()], ids=["kept", "renumbered"])
def test_sealed_layout_equals_restart(name: str, family: str, arm: Arm) -> None:
    law = LAWS[name].law(TRACE)
    layout = sealed_layout(TRACE, law, renumber=isinstance(arm, RestartRenumbered))
    with attending(tiny(family)) as model:
        sealed = model(**model_inputs([layout], model), use_cache=False).logits[0].log_softmax(-1)
    _, restarted = replay(family, arm, law)
    assert_equal(sealed[predicting_columns(layout, len(TRACE))], restarted)


ARMS = {
    "full": (Full(), True),
    "placebo": (PlaceboArm(), False),
    "rerotated": (Rerotated(), True),
    "noise": (Noise(0.5), True),
    "no-noise": (Noise(0.0), False),
    "restart": (Restart(), True),
    "restart-keys": (Restart(Part(kv=("k",))), True),
}


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("name", DIFFERENT)
def test_arms_differ_from_memento_where_they_should(name: str, arm: str) -> None:
    law, (altered, differs) = LAWS[name].law(TRACE), ARMS[arm]
    reference, logp = replay("qwen3", Memento(), law)[1], replay("qwen3", altered, law)[1]
    first = min(erasure.expires_at for erasure in law.erasures(TRACE))
    gap = (logp - reference).abs().amax(-1)
    assert gap[: first - 1].max() <= 1e-5
    assert (gap.max() > 1e-3) == differs
    assert_equal(replay("qwen3", altered, law, size=1000)[1], logp)


def test_closing_up_a_window_without_a_prefix_changes_nothing() -> None:
    """Only relative positions matter: where all retained tokens move together, `rerotated` equals `memento`."""
    law = LAWS["no-sinks"].law(TRACE)
    assert_equal(replay("qwen3", Rerotated(), law)[1], replay("qwen3", Memento(), law)[1])


@pytest.mark.parametrize("name", ["window", "sinks"])
def test_noise_reaches_each_carrier_once(name: str) -> None:
    """First-layer values depend on the token alone, so their change is the noise; other tokens keep their states."""
    law = LAWS[name].law(TRACE)
    (clean, _), (noisy, _) = (replay("qwen3", arm, law) for arm in (Memento(), Noise(0.5)))
    held = torch.from_numpy(clean.cache.held_indices(0).copy())
    values, changed = (session.cache.layers[0].values[0, :, : len(held)] for session in (clean, noisy))
    ratio = (changed - values).square().mean((0, 2)).sqrt() / values.square().mean().sqrt()
    last = law.erasures(TRACE)[-1]
    reached = (held >= last.carriers.start) & (held < last.expires_at)
    assert reached.sum() >= 4 and ((ratio[reached] > 0.2) & (ratio[reached] < 1)).all()
    assert (ratio[~reached] == 0).all()


def test_arms_of_blocks_are_refused_under_other_laws() -> None:
    law = parse_law("sinks:1,4", Chat())
    for arm in (RestartBare(), SealMementos(), Swap()):
        with pytest.raises(UserError, match=rf"{arm.name} acts on blocks and mementos, which the law sinks:1,4"):
            arm.adapt_law(law)
    with pytest.raises(UserError, match="has no mementos to seal"):
        Restart(Part(carrier="mementos")).adapt_law(law)
    assert Full().adapt_law(law) == KeepAll()


def test_generation_evicts_by_the_law() -> None:
    law = parse_law("window:12,3,prompt=4", Chat())
    requests = [Request(TRACE[:4], (0,)), Request(TRACE[:6], (1,))]
    model = tiny("llama")
    for done in generate(model, requests, MARKUP, POLICY, Sampling(24, temperature=1.0), law=law):
        curve = alive(expiry([*done.prompt, *done.tokens][:-1], law))
        assert done.kv_tokens.tolist() == curve.tolist() and done.peak_kv_tokens <= 13


def foreign_engine(tokens: list[int]) -> tuple[Tensor, list[int | None]]:
    """Decode with stock transformers and its own cache, and evict by a rule of its own.

    Returns:
        Log-probabilities after every token, and the log: for each token, when it left.
    """
    model, cache, held = tiny("llama"), DynamicCache(), []
    rng, evicted_at, logp = np.random.default_rng(3), [None] * len(tokens), []
    for step, token in enumerate(tokens):
        held.append(step)
        position = torch.tensor([[step]])
        out = model(torch.tensor([[token]]), position_ids=position, past_key_values=cache, use_cache=True)
        logp.append(out.logits[0, -1].log_softmax(-1))
        if len(held) > 9:
            leaving = rng.choice(held[:-1], size=3, replace=False).tolist()
            kept = torch.tensor([slot for slot, key in enumerate(held) if key not in leaving])
            held = [key for key in held if key not in leaving]
            for key in leaving:
                evicted_at[key] = step + 1
            for layer in cache.layers:
                layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]
    return torch.stack(logp), evicted_at


def test_log_replays_another_engine(tmp_path: Path) -> None:
    expected, evicted_at = foreign_engine(TRACE)
    row = {"token_ids": TRACE, "evicted_at": evicted_at}
    (tmp_path / "log.jsonl").write_text(json.dumps(row))
    law = parse_law(f"log:{tmp_path / 'log.jsonl'}", Chat())
    assert_equal(replay("llama", Memento(), law)[1], expected)
    with attending(tiny("llama")) as model:
        masked = model(**pad_batch([TRACE], [expiry(TRACE, law)], pad_id=0).inputs, use_cache=False).logits[0]
    assert_equal(masked.log_softmax(-1), expected)
    with pytest.raises(UserError, match="no row of"):
        replay("llama", Memento(), law, [*TRACE[:5], 90])
    with pytest.raises(UserError, match="replays recorded tokens and cannot generate"):
        generate(tiny("llama"), [Request(TRACE)], MARKUP, POLICY, Sampling(4), law=law)
