"""The report of an ablation under other laws: which text left, and when."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from helpers.laws import CHAT, streams
from helpers.paths import DATA, requires_data
from helpers.stock import NEEDED, stock
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

import ghosttrace as gt
from ghosttrace.ablation.arms import Memento, Swap
from ghosttrace.ablation.erased import nothing_swapped
from ghosttrace.data.spans import token_ends
from ghosttrace.law.expiry import NEVER
from ghosttrace.law.parse import parse_law
from ghosttrace.report.ablation.boxes import Box, Piece, boxes_of_tokens
from ghosttrace.report.ablation.page_data import TraceRenderer, read_samples_without_texts, read_traces


@given(streams, st.sampled_from(["turns:2,1", "tools:0", "sinks:2,5", "chunks:6,2"]), st.data())
def test_every_letter_is_marked_as_its_token(tokens: list[int], spec: str, data: st.DataObject) -> None:
    words = ["" if token == 9 else f"{token} " for token in tokens]  # a token may have no text of its own
    if data.draw(st.booleans()) and words:
        words[data.draw(st.integers(0, len(words) - 1))] = "a</think>b"
    times, prompt = gt.expiry(tokens, parse_law(spec, CHAT)), data.draw(st.integers(0, len(tokens)))
    row = {"prompt_ids": tokens[:prompt], "response_ids": tokens[prompt:], "response": "".join(words[prompt:])}
    row |= {"prompt_text": "".join(words[:prompt]), "token_ends": np.cumsum([len(word) for word in words]).tolist()}
    boxes = boxes_of_tokens(row, times)
    expected = [
        (letter, None if time == NEVER else int(time))
        for word, time in zip(words, times, strict=True)
        for letter in word
    ]
    if not tokens:
        return
    assert [(letter, piece.left_after) for box in boxes for piece in box.pieces for letter in piece.text] == expected
    assert all(piece.erased == (piece.left_after is not None) for box in boxes for piece in box.pieces)
    text = {box.label: "".join(piece.text for piece in box.pieces) for box in boxes}
    assert text.get("prompt", "") == row["prompt_text"]
    assert text.get("answer", "") == (
        row["response"].rpartition("</think>")[2] if "</think>" in row["response"] else ""
    )


def test_a_run_without_token_texts_shows_its_response() -> None:
    row = {"prompt_ids": [3, 4], "response_ids": [20], "response": "one"}
    expected = [Box("text", 1, (Piece("one", False, False),))]
    assert boxes_of_tokens(row, np.array([3, NEVER, NEVER])) == expected
    spelled_differently = row | {"prompt_text": "p", "token_ends": [1, 1, 3]}
    assert boxes_of_tokens(spelled_differently, np.array([3, NEVER, NEVER])) == expected


@requires_data(NEEDED)
def test_token_ends_are_those_of_decoded_prefixes() -> None:
    tokenizer, rng = AutoTokenizer.from_pretrained(DATA / NEEDED), np.random.default_rng(0)
    text = "<|im_start|>user\nHello wörld, 日本語 🎉🤖  a\n\n482 don't . no , x"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    for end, length in enumerate(token_ends(ids, tokenizer.decode), 1):
        prefix = tokenizer.decode(ids[:end])
        assert prefix.startswith(text[:length]) and (prefix == text[:length] or prefix.endswith("\ufffd"))
    for _ in range(30):  # sampled tokens need not spell whole characters
        ids = rng.integers(0, 150_000, 12).tolist()
        ends = token_ends(ids, tokenizer.decode)
        assert ends == sorted(ends) and ends[-1] == len(tokenizer.decode(ids))

    def without_first_space(tokens: list[int]) -> str:
        return " ".join(map(str, tokens))

    assert token_ends([1, 22, 3], without_first_space) == [1, 4, 6]
    assert token_ends([1, 22, 3], lambda tokens: "x" if len(tokens) == 3 else "long") == [1, 1, 1]


@requires_data(NEEDED)
def test_the_reader_shows_which_tool_results_left(tmp_path: Path) -> None:
    more = {"limit": 1, "sampling": {"max_new_tokens": 6}, "out": tmp_path / "run"}
    run = gt.ablate(stock("tools:0"), "agent-erased", ["full", "swap"], **more)  # type: ignore[arg-type]
    path = tmp_path / "run" / "samples.parquet"
    (group,) = read_traces(path, read_samples_without_texts(path), run.configuration)
    prompt = {arm: trace["boxes"][0] for arm, trace in group["arms"].items()}
    left = [piece for piece in prompt["memento"].pieces if piece.erased]
    assert [json.loads(piece.text)["stock"] >= 100 for piece in left] == [True] * 3
    assert not any(piece.erased for piece in prompt["full"].pieces)
    assert prompt["memento"].label == "prompt" and prompt["memento"].tokens == len(run.samples["prompt_ids"].iloc[0])
    tokenizer, ids = stock("tools:0").tokenizer, run.samples["prompt_ids"].iloc[0].tolist()
    for piece in left:  # the text up to the closing token had been read when it left
        assert piece.left_after and tokenizer.decode(ids[: piece.left_after]).endswith(f"{piece.text}</tool_response>")
    corners = dict(group["arms"]["memento"]["curve"])
    sizes = gt.alive(gt.expiry([*ids, *run.samples["response_ids"].iloc[0]], stock("tools:0").law))
    assert all(sizes[step] == held for step, held in corners.items()) and max(corners) == len(sizes) - 1
    page = run.page()
    assert "Point at erased text" in page and "computed from a counterfactual result" in page


def test_a_swap_that_swapped_nothing_is_a_failure() -> None:
    arms = {"memento": Memento(), "swap": Swap()}
    rows = [("b", "memento", None), ("b", "swap", None), ("c", "memento", None), ("c", "swap", "4")]
    samples = pd.DataFrame(rows, columns=["bench", "arm", "donor_answer"])
    (message,) = nothing_swapped(samples, arms)
    assert message.startswith("b: under swap, no response") and "nothing was swapped" in message


def test_a_run_under_mementos_law_records_no_token_texts() -> None:
    run = gt.ablate("toy-mixed", "ledger-h0", ["full"], limit=1, sampling={"max_new_tokens": 2})
    assert run.samples[["prompt_text", "token_ends"]].isna().all(axis=None)
    renderer = TraceRenderer.from_config(run.configuration)
    assert renderer.render(run.samples.iloc[0].to_dict())["boxes"][0].label != "prompt"
