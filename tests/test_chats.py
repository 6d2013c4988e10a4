"""Chats in OpenAI's message format: reading, tokenising, and the generated sessions of the benchmark `agent`."""

import json
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.chat_model import TEMPLATE, chat_tokenizer
from helpers.paths import requires_data
from helpers.stock import NEEDED, stock
from hypothesis import given
from hypothesis import strategies as st

import ghosttrace as gt
from ghosttrace.bench import load_bench
from ghosttrace.bench.agent import NUMBERS, SMALLEST, AgentSession, example_chats, grade
from ghosttrace.data.chats import ChatMessages, is_chat, parse_chat, tokenize_chat
from ghosttrace.data.read import read_traces
from ghosttrace.data.tokens import load_traces
from ghosttrace.law.chat import find_assistant_header, find_sequence
from ghosttrace.law.expiry import NEVER, expiry
from ghosttrace.law.tools import find_tool_results

PAIR = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def test_parts_are_joined_and_null_is_empty() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = parse_chat({"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": None}]}, "x")
    assert chat == ChatMessages(({"role": "user", "content": "ab"}, {"role": "assistant", "content": ""}))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "not a list"),
        ({"messages": "hello"}, "not a list"),
        ({"messages": [{"content": "x"}]}, "message 0 has no 'role'"),
        ({"messages": [*PAIR, {"role": "user", "content": 3}]}, "message 2 has a 'content' that is not text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a 'content' that is not text"),
        ({"messages": PAIR, "tools": 3}, "'tools' that are not a list"),
    ],
)
def test_bad_chats_are_refused(row: dict[str, object], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(gt.UserError, match=message):
        read_traces(tmp_path / "a.jsonl")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["messages", "tools", "response", "problem"]), json_values, max_size=4))
def test_any_row_is_a_chat_or_refused(row: dict[str, object]) -> None:
    if is_chat(row):
        with suppress(gt.UserError):
            assert all(isinstance(message["content"], str) for message in parse_chat(row, "file").messages)


def test_a_row_with_a_response_is_no_chat() -> None:
    assert is_chat({"messages": PAIR}) and not is_chat({"messages": PAIR, "response": "x"}) and not is_chat(3)


@requires_data(NEEDED)
def test_a_chat_is_tokenised_by_the_models_template(tmp_path: Path) -> None:
    checkpoint = stock("tools:0")
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, example_chats(2, 0))))
    traces = load_traces(checkpoint, tmp_path / "a.jsonl")
    text = checkpoint.tokenizer.apply_chat_template(example_chats(1, 0)[0]["messages"], tokenize=False)
    assert checkpoint.tokenizer.decode(traces[0].ids) == text
    assert checkpoint.tokenizer.decode(traces[0].prompt).endswith("<|im_start|>assistant\n")
    assert len(find_tool_results(traces[0].ids, checkpoint.chat)) == 3
    info_rows = checkpoint.law.erasures(traces[1].ids)
    assert [checkpoint.tokenizer.decode(traces[1].ids[row.keys[0] :])[:9] for row in info_rows] == ['\n{"item":'] * 3


@requires_data(NEEDED)
def test_a_reply_that_begins_with_a_line_break_opens_a_turn() -> None:
    """The tokenizer merges two line breaks, and so the end of the header with the beginning of the reply."""
    tokenizer = stock("none").tokenizer
    replies = ["\nfirst", "second", "\n\nthird"]
    messages = [message for reply in replies for message in (PAIR[0], {"role": "assistant", "content": reply})]
    prompt, response = tokenize_chat(ChatMessages(tuple(messages)), tokenizer)
    ids, header = np.array([*prompt, *response]), find_assistant_header(tokenizer)
    assert len(find_sequence(ids, header)) == len(replies) and tuple(prompt[-len(header) :]) == header
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(messages, tokenize=False)
    plain = [message for message in messages if not message["content"].startswith("\n")]
    joined = tokenizer(tokenizer.apply_chat_template(plain, tokenize=False), add_special_tokens=False)["input_ids"]
    prompt, response = tokenize_chat(ChatMessages(tuple(plain)), tokenizer)
    assert [*prompt, *response] == joined


@requires_data(NEEDED)
def test_a_template_that_refuses_a_chat_is_named(tmp_path: Path) -> None:
    checkpoint = stock("none")
    checkpoint.tokenizer.chat_template, kept = (
        "{{ raise_exception('roles must alternate') }}",
        checkpoint.tokenizer.chat_template,
    )
    try:
        (tmp_path / "a.jsonl").write_text(json.dumps({"messages": PAIR}))
        with pytest.raises(gt.UserError, match=r"refuses a chat: roles must alternate"):
            load_traces(checkpoint, tmp_path / "a.jsonl")
    finally:
        checkpoint.tokenizer.chat_template = kept


def test_a_role_that_the_template_leaves_out_is_named() -> None:
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}")
    chat = ChatMessages((*PAIR, {"role": "tool", "content": "w15 w16"}))
    with pytest.raises(gt.UserError, match="leaves out messages of the role 'tool'"):
        tokenize_chat(chat, tokenizer)
    assert tokenize_chat(ChatMessages(tuple(PAIR)), tokenizer)


@given(st.integers(0, 2**32), st.booleans())
def test_the_messages_determine_the_answer_exactly_where_they_should(seed: int, noted: bool) -> None:
    session = AgentSession.sample(np.random.default_rng(seed), noted)
    item, answer = session.items[session.asked], session.stock[session.asked]
    results = [json.loads(message["content"]) for message in session.messages if message["role"] == "tool"]
    assert {"item": item, "stock": answer} in results and len(results) == len(set(session.items)) == 3
    spoken = [message["content"] for message in session.messages if message["role"] != "tool"]
    assert any(f"We have {answer} {item}." in text for text in spoken) == noted
    assert f"How many {item} do we have?" in spoken[-1]


def test_benchmarks_state_their_ceiling_and_grade_the_first_integer() -> None:
    (erased,), (noted,) = load_bench("agent-erased", 3), load_bench("agent-noted", 3)
    assert erased.ceiling == 1 / 900 and noted.ceiling is None
    problem = erased.problems[0]
    assert grade(problem, f" We have {problem.answer} of 1.").correct and not grade(problem, "None").correct
    assert load_bench("agent-erased", 3)[0].digest == erased.digest != load_bench("agent-erased", 3, 1)[0].digest
    assert len(load_bench("agent", 1)) == 2


@requires_data(NEEDED)
def test_the_secret_of_a_session_is_token_exact_and_leaves() -> None:
    checkpoint = stock("tools:0")
    (bench,) = load_bench("agent-erased", 1)
    assert bench.secrets is not None
    for block in range(3):
        task = bench.secrets(checkpoint, 5, 0, block)
        for sample in task.samples:
            spelled = checkpoint.tokenizer.decode([sample.ids[index] for index in sample.secret_indices])
            assert spelled == sample.secret == "".join(map(str, sample.labels))
            times = expiry(sample.ids, checkpoint.law)
            assert (times[list(sample.secret_indices)] < NEVER).all()
            kept = checkpoint.tokenizer.decode(np.asarray(sample.ids)[times == NEVER])
            assert f"We have {sample.secret}" not in kept
    with pytest.raises(gt.UserError, match="give --block from 0 to 2"):
        bench.secrets(checkpoint, 1, 0, 3)


@requires_data(NEEDED)
def test_the_posterior_of_a_session_equals_enumeration() -> None:
    """All numbers are equally likely, and under the law `tools` the retained tokens are the same for each of them."""
    checkpoint = stock("tools:0")
    (bench,) = load_bench("agent-erased", 1)
    assert bench.secrets is not None
    task = bench.secrets(checkpoint, 3, 0, 1)
    session = AgentSession.sample(np.random.default_rng(5), False)
    texts = set()
    for stock_number in range(SMALLEST, SMALLEST + NUMBERS, 37):
        numbers = tuple(stock_number if index == session.asked else value for index, value in enumerate(session.stock))
        ids = checkpoint.prompt_ids(replace(session, stock=numbers).messages)
        texts.add(tuple(np.asarray(ids)[expiry(ids, checkpoint.law) == NEVER].tolist()))
    assert len(texts) == 1
    for place, target in enumerate(task.targets):
        counts = Counter(str(number)[place] for number in range(SMALLEST, SMALLEST + NUMBERS))
        shares = [counts[label] / NUMBERS for label in target.classes]
        np.testing.assert_allclose(np.exp(task.exact_log_posteriors[target.name][0]), shares)
