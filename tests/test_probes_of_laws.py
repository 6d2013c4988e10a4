"""Probes under other laws than Memento's: where secrets stand, which tokens carry them, and what the cache holds."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.families import tiny
from helpers.laws import CHAT, MARKUP, TOOL_TURNS, chat_trace, streams
from helpers.paths import requires_data
from helpers.stock import NEEDED, stock
from hypothesis import given
from hypothesis import strategies as st

import ghosttrace as gt
from ghosttrace.ablation.arms import Memento, Restart
from ghosttrace.auditing.defended_caches import read_defended_states
from ghosttrace.auditing.marked_secrets import marked_task
from ghosttrace.bench.agent import example_chats
from ghosttrace.data.chats import parse_chat
from ghosttrace.data.task import Sample
from ghosttrace.data.tokens import TokenTrace, to_token_trace
from ghosttrace.law.expiry import NEVER, expiry
from ghosttrace.law.layout import open_layout, sealed_layout
from ghosttrace.law.parse import parse_law
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.states import read_states
from ghosttrace.probing.carriers import AFTER_TOKENS, chat_parts
from ghosttrace.probing.places import first_run
from ghosttrace.probing.planting import plant_secrets
from ghosttrace.probing.secrets import digit_codes
from ghosttrace.probing.tasks import make_task
from ghosttrace.probing.text_baseline import retained_tokens, segment_numbers

SPECS = ("window:24,5,prompt=3", "sinks:2,9", "chunks:12,4,prompt=3", "turns:2,1", "tools:0", "tools:1")


@given(streams, st.sampled_from(SPECS), st.data())
def test_carriers_are_retained_and_on_their_side_of_the_secret(
    tokens: list[int], spec: str, data: st.DataObject
) -> None:
    """Against the definition, token by token, on arbitrary streams."""
    chat = TOOL_TURNS if data.draw(st.booleans()) else CHAT
    law = parse_law(spec, chat)
    try:
        times = expiry(tokens, law)
    except gt.UserError:  # the prompt does not fit into the window
        return
    leaving = np.flatnonzero(times < NEVER)
    if not len(leaving):
        return
    secret = int(data.draw(st.sampled_from(leaving.tolist())))
    starts = [index for index, token in enumerate(tokens) if token in chat.turn_starts]
    turn = max(0, sum(start <= secret for start in starts) - 1)
    parts = chat_parts(law, chat, Sample(tokens, "t", "", turn, (secret,), ()))
    together = [np.asarray(each.keys) for each in law.erasures(tokens) if secret in np.asarray(each.keys)]
    first, last = int(np.concatenate(together).min()), int(np.concatenate(together).max())
    held = [index for index in range(len(tokens)) if times[index] > times[secret]]
    after = [index for index in held if index > last]
    found = [int(index) for hop in range(len(tokens)) for index in parts.find("after", hop)]
    assert found == after and all(len(parts.find("after", hop)) <= AFTER_TOKENS for hop in range(3))
    assert [int(index) for index in parts.find("after", -1)] == [index for index in held if index < first][-8:]
    assert [int(index) for index in parts.find("last", 0)] == after[-1:]
    for hop in range(-1, 4):
        number = turn + hop
        ends = [*starts, len(tokens)]
        inside = range(ends[number], ends[number + 1]) if 0 <= number < len(starts) else range(0)
        expected = [index for index in held if index in inside and (hop < 0 or index > secret)]
        assert [int(index) for index in parts.find("turn", hop)] == expected
        special = {*chat.turn_starts, chat.turn_end, chat.tool_close, chat.tool_open[0]}
        assert [int(i) for i in parts.find("delimiters", hop)] == [i for i in expected if tokens[i] in special]


@given(st.lists(st.booleans(), max_size=12), st.integers(0, 12), st.integers(0, 12))
def test_first_run(chosen: list[bool], begin: int, end: int) -> None:
    end = min(end, len(chosen))
    expected: list[int] = []
    for index in range(begin, end):
        if chosen[index] and (not expected or index == expected[-1] + 1):
            expected.append(index)
    assert list(first_run(np.array(chosen, dtype=bool), range(begin, max(begin, end)))) == expected


@pytest.mark.parametrize("spec", SPECS)
def test_one_masked_pass_reads_the_states_that_a_session_holds(spec: str) -> None:
    """Keys and values of all retained tokens, open and sealed: the pass against physical eviction."""
    law = parse_law(spec, CHAT)
    checkpoint = Checkpoint("llama", tiny("llama"), None, MARKUP, gt.Policy(False, -1), other_law=law)
    for seed in range(3):
        ids = np.array(chat_trace(seed))
        retained = np.flatnonzero(expiry(ids, law) == NEVER)
        assert len(retained) < len(ids), "the law erases nothing"
        for arm, layout in ((Memento(), open_layout), (Restart(), sealed_layout)):
            in_one_pass = read_states(checkpoint.model, [layout(ids, law)], [retained])
            in_session = read_defended_states(checkpoint, arm, 0, [ids], [0], [retained])
            for name in ("keys", "values"):
                torch.testing.assert_close(getattr(in_one_pass, name), getattr(in_session, name), atol=1e-4, rtol=1e-4)


@cache
def traces() -> tuple[TokenTrace, ...]:
    chats = [parse_chat(row, "made") for row in example_chats(12, 3)]
    return tuple(to_token_trace(stock("none"), "made", str(number), chat) for number, chat in enumerate(chats))


@requires_data(NEEDED)
@pytest.mark.parametrize(
    ("law", "role"),
    [("tools:0", "tool"), ("tools:1", "tool"), ("window:120,40", "tool"), ("chunks:60,20", "assistant")],
)
def test_planted_secrets_are_token_exact_and_leave(law: str, role: str) -> None:
    checkpoint = stock(law)
    task = plant_secrets(traces(), checkpoint, digit_codes(3), 0, 8, role=role)  # type: ignore[arg-type]
    assert len(task.samples) == 96 and task.exact_log_posteriors.keys() == {f"digit-{place}" for place in range(3)}
    for sample in task.samples:
        decode = checkpoint.tokenizer.decode
        assert decode([sample.ids[index] for index in sample.secret_indices]) == sample.secret
        assert (expiry(sample.ids, checkpoint.law)[list(sample.secret_indices)] < NEVER).all()
        header = decode(sample.ids).rpartition(sample.secret)[0].rpartition("<|im_start|>")[2]
        assert header.startswith("user\n<tool_response>\n" if role == "tool" else "assistant\n")


@requires_data(NEEDED)
def test_natural_attributes_of_tool_results() -> None:
    found = make_task(stock("tools:0"), traces=traces(), secret='regex:"stock": (\\d)')
    assert len(found.samples) == 36 and set(found.targets[0].classes) <= set("123456789")


def is_found(run: gt.ProbeResult, condition: str) -> bool:
    rows = run.results[run.results["condition"] == condition]
    return bool(rows["significant"].any())


@requires_data(NEEDED)
def test_probe_of_agent_sessions(tmp_path: Path) -> None:
    """A random model: digits are read where the closing token has seen them, and nowhere in a sealed cache."""
    more = {"hops": [0], "layers": [1], "kv": ["v"], "samples": 600, "mlp": False, "out": tmp_path / "run"}
    run = gt.probe(stock("tools:0"), "agent-erased", carriers=["delimiters"], **more)  # type: ignore[arg-type]
    assert run.valid and is_found(run, "open") and not is_found(run, "sealed")
    assert run.configuration["law"]["spec"] == "tools:0"


@requires_data(NEEDED)
@pytest.mark.parametrize(
    ("law", "more", "message"),
    [
        ("tools:0", {"bench": "ledger-h3"}, "stand in blocks, which the law tools:0 does not know"),
        ("tools:0", {"bench": "agent-erased", "carriers": ["memento"]}, "has no carrier 'memento': choose --carriers"),
        ("tools:0", {"bench": "agent-erased", "hops": [12]}, "no trace has delimiters tokens at hop 12"),
        ("tools:0", {"bench": "agent-erased", "block": -1}, "--block must be at least 0"),
        ("tools:0", {"bench": "agent-erased", "carriers": ["last"], "hops": [2]}, "add 0 to --hops"),
        ("tools:0", {"traces": "CHATS", "role": "user"}, "--in must be tool or assistant, not 'user'"),
        ("tools:0", {"traces": "CHATS", "block": 4}, "no trace has 5 tool results that leave under the law tools:0"),
        ("tools:0", {"traces": "CHATS", "role": "assistant"}, "no trace has 1 assistant turns that leave"),
        ("window:900,1", {"bench": "agent-erased"}, "never erased under this law, window:900,1"),
    ],
)
def test_bad_input_is_one_sentence(law: str, more: dict[str, object], message: str, tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, example_chats(3, 0))))
    arguments = {key: str(tmp_path / "chats.jsonl") if value == "CHATS" else value for key, value in more.items()}
    with pytest.raises(gt.UserError, match=message):
        gt.probe(stock(law), samples=150, **arguments)  # type: ignore[arg-type]


def test_agent_sessions_need_another_law() -> None:
    with pytest.raises(gt.UserError, match="give a law such as --law tools:0"):
        gt.probe("toy-open", "agent-erased", samples=30)
    with pytest.raises(gt.UserError, match="the law memento has no carrier 'after'"):
        gt.probe("toy-open", carriers=["after"], samples=30)


@requires_data(NEEDED)
def test_a_marked_secret_that_is_still_held_elsewhere_is_excluded() -> None:
    """The copy leaves as well, but after the secret, whose states are read while it is held."""
    checkpoint = stock("turns:2,1")
    say = {"role": "user", "content": "Go on."}
    results = [
        {"role": "tool", "name": "a", "tool_call_id": "abcdefghi", "content": f"The key is {n}."}
        for n in ("alpha", "beta")
    ]
    repeated = {"role": "assistant", "content": "I noted that the key is alpha."}
    rest = [say, {"role": "assistant", "content": "Yes."}, say, {"role": "assistant", "content": "Yes."}, say]
    messages = [say, {"role": "assistant", "content": "I look."}, results[0], repeated, *rest]
    bare = [say, {"role": "assistant", "content": "I look."}, results[0], *rest]
    both = [
        to_token_trace(checkpoint, "made", name, parse_chat({"messages": chat}, "x"))
        for name, chat in (("repeated", messages), ("bare", bare), ("bare2", bare))
    ]
    marks = [
        {"trace": name, "block": 0, "text": "alpha", "label": label}
        for name, label in (("repeated", "a"), ("bare", "a"), ("bare2", "a"))
    ]
    with pytest.raises(gt.UserError, match="has the same label everywhere"):
        marked_task(both, checkpoint, marks, 0)
    marks[0]["label"] = "b"
    with pytest.raises(gt.UserError, match="has the same label everywhere"):  # the other label was excluded
        marked_task(both, checkpoint, marks, 0)


@requires_data(NEEDED)
def test_segments_of_the_text_are_counted_from_the_secret() -> None:
    checkpoint = stock("tools:0")
    task = plant_secrets(traces(), checkpoint, digit_codes(4), 1, 10)
    texts = retained_tokens(checkpoint, task)
    assert set(segment_numbers(checkpoint, task, texts)) == {
        1
    }  # two segments of text precede the secret, so it is in gap 1


@requires_data(NEEDED)
@pytest.mark.parametrize(
    ("law", "message"), [("log:LOG", "replays recorded tokens, and a planted secret changes them")]
)
def test_a_log_has_no_place_for_a_secret(law: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps({"token_ids": [1, 2, 3], "evicted_at": [3, None, None]}))
    with pytest.raises(gt.UserError, match=message):
        gt.probe(stock(law.replace("LOG", str(tmp_path / "log.jsonl"))), traces=list(traces()), samples=20)
