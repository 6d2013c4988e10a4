"""All eviction laws: vector, tracker and simulation agree, and specifications and logs are checked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.laws import CHAT, CLOSE, END, HEAD, LAWS, OPEN, START, chat_trace, simulate, streams
from helpers.paths import DATA, requires_data
from hypothesis import given, settings
from pyarrow import parquet
from transformers import AutoTokenizer

from ghosttrace.errors import UserError
from ghosttrace.law.chat import Chat
from ghosttrace.law.expiry import NEVER, expiry
from ghosttrace.law.law import Law
from ghosttrace.law.parse import law_from_dict, parse_law

PLAIN = Chat()


def tracked(tokens: list[int], law: Law) -> np.ndarray:
    tracker, times = law.tracker(), np.full(len(tokens), NEVER)
    for index, token in enumerate(tokens):
        for erasure in tracker.push(token):
            assert erasure.expires_at == index + 1
            times[np.asarray(erasure.keys)] = erasure.expires_at
    return times


@pytest.mark.parametrize("name", LAWS)
@settings(max_examples=80)
@given(streams)
def test_vector_form_equals_tracker_and_simulation(name: str, tokens: list[int]) -> None:
    case = LAWS[name]
    law = case.law(tokens)
    try:
        expected = simulate(tokens, case.leaving(tokens))
    except UserError:
        for form in (expiry, lambda tokens, law: tracked(tokens, law)):
            with pytest.raises(UserError, match="do not fit into the window"):
                form(tokens, law)
        return
    times = expiry(tokens, law)
    np.testing.assert_array_equal(np.where(times > len(tokens), NEVER, times), expected)
    np.testing.assert_array_equal(tracked(tokens, law), times)
    erasures = law.erasures(tokens)
    assert [erasure.expires_at for erasure in erasures] == sorted(erasure.expires_at for erasure in erasures)
    assert all(erasure.carriers.start <= min(erasure.keys) for erasure in erasures if len(erasure.keys))


@pytest.mark.parametrize("name", [name for name in LAWS if name != "none"])
def test_every_law_erases_something_from_the_chat(name: str) -> None:
    """Positive control of the comparisons on models: the shared trace has several erasures under every law."""
    tokens = chat_trace(0)
    assert len(LAWS[name].law(tokens).erasures(tokens[:-2])) >= 2


def test_laws_by_hand() -> None:
    tokens = [20, START, HEAD, *range(30, 40)]  # a prompt of 3 tokens and 10 others
    times = {spec: expiry(tokens, parse_law(spec, CHAT)) for spec in ("window:6,2", "sinks:1,4", "chunks:4,1")}
    erased = {spec: {k: int(t) for k, t in enumerate(time) if t != NEVER} for spec, time in times.items()}
    assert erased["window:6,2"] == {3: 7, 4: 7, 5: 9, 6: 9, 7: 11, 8: 11, 9: 13, 10: 13}
    assert erased["sinks:1,4"] == {key: key + 5 for key in range(1, 9)}
    assert erased["chunks:4,1"] == {3: 7, 4: 7, 5: 7, 6: 11, 7: 11, 8: 11, 9: 11}
    plain = expiry(list(range(30, 40)), parse_law("window:6,2,prompt=0", PLAIN))
    assert {k: int(t) for k, t in enumerate(plain) if t != NEVER} == {0: 7, 1: 7, 2: 9, 3: 9}
    chat = [START, 40, END, START, HEAD, 41, END, START, 42]
    assert expiry(chat, parse_law("turns:2,1", CHAT))[:3].tolist() == [8, 8, 8]
    assert (expiry(chat, parse_law("turns:2,1", CHAT))[3:] == NEVER).all()


def test_a_tool_result_that_the_model_itself_writes_is_none() -> None:
    law = parse_law("tools:0", CHAT)
    for tokens in ([START, HEAD, OPEN, 40, CLOSE, END], [START, HEAD, OPEN, 40, END, CLOSE]):
        assert (expiry(tokens, law) == NEVER).all() and (tracked(tokens, law) == NEVER).all()
    for tokens in ([OPEN, 40, CLOSE, START, HEAD], [OPEN, OPEN, 40, CLOSE, CLOSE]):
        begin = tokens.index(40)
        assert np.flatnonzero(expiry(tokens, law) == begin + 2).tolist() == [begin]
        assert np.flatnonzero(tracked(tokens, law) == begin + 2).tolist() == [begin]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("banana:3", "there is no law 'banana:3': choose from memento, window:SIZE,STRIDE"),
        ("window", "is written window:SIZE,STRIDE with integers"),
        ("window:8", "is written window:SIZE,STRIDE"),
        ("window:8,x", "is written window:SIZE,STRIDE"),
        ("window:8,0", "integers of at least 1 and 1"),
        ("window:8,9", "do not fit into the window"),
        ("window:8,2,prompt=7", "a prompt of 7 tokens and a stride of 2 do not fit into the window"),
        ("window:8,2,prompt=x", "such as prompt=0, not 'x'"),
        ("sinks:1,0", "integers of at least 0 and 1"),
        ("chunks:4,4", "give a CARRY below SIZE"),
        ("chunks:4,0", "integers of at least 2 and 1"),
        ("turns:2,3", "give STRIDE at most KEEP"),
        ("tools:-1", "is written tools:KEEP"),
        ("none:1", "takes no arguments"),
        ("log:missing.jsonl", "there is no eviction log 'missing.jsonl'"),
        ("h2o:0.2", "h2o evicts by head or layer"),
        ("recall", "recall brings evicted keys back"),
    ],
)
def test_invalid_specifications_are_refused(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_law(spec, CHAT)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("window:8,2", "for plain text write window:SIZE,STRIDE,prompt=0"),
        ("chunks:8,2", "needs a chat"),
        ("turns:2,1", "opens every turn with a special token"),
        ("tools:1", "one without that role"),
    ],
)
def test_laws_that_need_a_chat_are_refused_without_one(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_law(spec, PLAIN)
    assert parse_law("sinks:2,4", PLAIN).spec == "sinks:2,4"


@pytest.mark.parametrize("spec", ["window:14,4", "window:14,4,prompt=2", "sinks:2,8", "chunks:6,2", "turns:3,2"])
def test_laws_are_recorded(spec: str) -> None:
    law = parse_law(spec, CHAT)
    assert law.spec == spec and law_from_dict(json.loads(json.dumps(law.to_dict()))) == law
    assert law_from_dict(parse_law("tools:1", CHAT).to_dict()).spec == "tools:1"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DATA / "tokenizers" / "qwen3")


@requires_data("tokenizers/qwen3")
def test_chat_of_qwen3(tokenizer: Any) -> None:
    chat = Chat.from_tokenizer(tokenizer)
    decoded = [tokenizer.decode(ids) for ids in (chat.assistant_header, chat.system_header, chat.tool_open)]
    assert decoded == ["<|im_start|>assistant\n", "<|im_start|>system", "<tool_response>"]
    assert tokenizer.decode(list(chat.turn_starts)) == "<|im_start|>"
    assert tokenizer.decode([chat.turn_end, chat.tool_close]) == "<|im_end|></tool_response>"
    messages = [{"role": "user", "content": "when?"}, {"role": "tool", "content": "\nat noon\n"}]
    messages += [{"role": "assistant", "content": "Noon."}, {"role": "user", "content": "thanks"}]
    ids = tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]
    erased = [token for token, time in zip(ids, expiry(ids, parse_law("tools:1", chat)), strict=True) if time != NEVER]
    assert tokenizer.decode(erased).strip() == "at noon"


TEMPLATES = {
    "tool turns": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "tools unmarked": "{% for m in messages %}<|im_start|>{{ 'assistant' if m.role == 'assistant' else 'user' }}\n"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "tools refused": "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "ordinary text": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
}


@requires_data("tokenizers/qwen3")
@pytest.mark.parametrize("name", TEMPLATES)
def test_other_chat_templates(name: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATES[name])
    chat = Chat.from_tokenizer(tokenizer)
    assert tokenizer.decode(list(chat.turn_starts)) == ("" if name == "ordinary text" else "<|im_start|>")
    if name == "tool turns":
        assert tokenizer.decode(list(chat.tool_open)) == "<|im_start|>tool"
        assert chat.tool_close == chat.turn_end
        return
    with pytest.raises(UserError, match="one without that role"):
        parse_law("tools:0", chat)


def write_log(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"log:{path}"


def test_logs_are_replayed_from_both_formats(tmp_path: Path) -> None:
    rows = [
        {"token_ids": [5, 6, 7, 8], "evicted_at": [None, 3, None, 9]},
        {"token_ids": [5, 9], "evicted_at": [2, None]},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    for spec in (write_log(tmp_path / "log.jsonl", rows), f"log:{tmp_path / 'log.parquet'}"):
        law = parse_law(spec, PLAIN)
        assert expiry([5, 6, 7, 8], law).tolist() == [NEVER, 3, NEVER, NEVER]
        assert expiry([5, 6, 7], law).tolist() == [NEVER, 3, NEVER]
        assert expiry([5, 9], law).tolist() == [2, NEVER]
        for form in (expiry, lambda tokens, law: tracked(tokens, law)):
            with pytest.raises(UserError, match=r"no row of .* begins with these 2 tokens"):
                form([5, 10], law)
            with pytest.raises(UserError, match=r"no row of .* begins with these 5 tokens"):
                form([5, 6, 7, 8, 8], law)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"token_ids": [5, 6], "evicted_at": [None]}, "row 1 has 2 token_ids and 1 times"),
        ({"token_ids": [5, 6, 7], "evicted_at": [None, 1, None]}, "evicts token 1 at 1, before the token after it"),
        ({"token_ids": [5, 6, 7], "evicted_at": [1, None, None]}, "evicts token 0 at 1, before the token after it"),
        ({"token_ids": [5, 6]}, "give token_ids and evicted_at"),
        ({"token_ids": [5, "x"], "evicted_at": [None, None]}, "token_ids holds integers"),
        ({"token_ids": [5, 6], "evicted_at": [[3, 4], [3, 5]]}, "evicts by head or layer"),
        ({"token_ids": [5, 6], "evicted_at": [None, None], "layer": 3}, "evicts by head or layer"),
        ({"token_ids": [5, 6], "evicted_at": [None, None], "recalled_at": [7, None]}, "brings evicted keys back"),
    ],
)
def test_logs_that_contradict_themselves_are_refused(tmp_path: Path, row: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_law(write_log(tmp_path / "log.jsonl", [row]), PLAIN)


def test_logs_with_two_answers_or_none_are_refused(tmp_path: Path) -> None:
    tokens = [5, 6, 7, 8]
    rows = [{"token_ids": tokens, "evicted_at": [3, None, None, None]}, {"token_ids": tokens, "evicted_at": [None] * 4}]
    law = parse_law(write_log(tmp_path / "log.jsonl", rows), PLAIN)
    assert expiry(tokens[:2], law).tolist() == [NEVER, NEVER]
    for form in (expiry, lambda tokens, law: tracked(tokens, law)):
        with pytest.raises(UserError, match="evict differently: keep one of the two"):
            form(tokens, law)
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "broken.jsonl").write_text("{")
    with pytest.raises(UserError, match="is empty"):
        parse_law(f"log:{tmp_path / 'empty.jsonl'}", PLAIN)
    with pytest.raises(UserError, match="neither JSONL nor Parquet"):
        parse_law(f"log:{tmp_path / 'broken.jsonl'}", PLAIN)
