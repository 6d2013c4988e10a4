"""Training under every law: losses equal brute force and sessions, rows that a law cannot hold, and the record."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.brute_force import brute_force
from helpers.chat_model import chat_tokenizer, save_chat_model
from helpers.families import tiny
from helpers.laws import CHAT, HEAD, LAWS, MARKUP, START, chat_trace, simulate
from helpers.losses import nll, packed
from helpers.training import QUICK, command
from hypothesis import given, settings
from hypothesis import strategies as st

import ghosttrace as gt
from ghosttrace.ablation.arms import Arm, Restart, RestartBare, RestartRenumbered
from ghosttrace.errors import UserError
from ghosttrace.law.chat import Chat
from ghosttrace.law.expiry import MementoLaw, Policy
from ghosttrace.law.law import KeepAll, Law
from ghosttrace.law.layout import sealed_layout, sealed_length
from ghosttrace.law.markup import Markup
from ghosttrace.law.parse import parse_law
from ghosttrace.model.attention import attending
from ghosttrace.model.session import Session
from ghosttrace.training.examples import IGNORE_INDEX, STAGES, Example, SealedArm, Stage, make_example, truncated_length
from ghosttrace.training.prepare import ExampleBuilder, write_examples

TRACES = [chat_trace(seed, rounds=2) for seed in (0, 1)]
ERASING = [name for name in LAWS if name != "none"]
SEALABLE = [name for name in ERASING if name != "memento-last-1"]
LAW = "window:30,8"


def labelled(tokens: list[int]) -> list[int]:
    """Return labels for all that follows the first assistant header."""
    begin = tokens.index(HEAD) + 1
    return [IGNORE_INDEX] * begin + tokens[begin:]


def loss(model: Any, examples: list[Example], number: int) -> torch.Tensor:
    """Return the summed loss of one of several examples that are packed into one row."""
    losses, _ = nll(model, [packed(*examples)])
    ends = np.cumsum([len(example.input_ids) for example in examples])
    begin = 0 if number == 0 else int(ends[number - 1])
    return losses[0, begin : int(ends[number]) - 1].sum()


def expected_loss(logits: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    """Return the summed loss of a trace from the logits after each of its tokens, float[T, V]."""
    targets = torch.tensor(labelled(tokens)[1:])
    return torch.nn.functional.cross_entropy(logits[:-1], targets, ignore_index=IGNORE_INDEX, reduction="sum")


@pytest.mark.parametrize("name", LAWS)
def test_masked_loss_equals_brute_force(name: str) -> None:
    """Of the second trace of a pack; what leaves is decided by the simulation, and attended one query at a time."""
    model, tokens = tiny("qwen3"), TRACES[1]
    examples = [make_example(trace, labelled(trace), LAWS[name].law(trace), "memento") for trace in TRACES]
    logits = brute_force(model, tokens, simulate(tokens, LAWS[name].leaving(tokens)))
    torch.testing.assert_close(loss(model, examples, 1), expected_loss(logits, tokens), rtol=1e-5, atol=1e-5)
    plain = make_example(tokens, labelled(tokens), LAWS[name].law(tokens), "full")
    assert (abs(loss(model, [plain], 0) - loss(model, examples, 1)) > 1e-2) == (name != "none")


def has_bare_arm(name: str) -> bool:
    law = LAWS[name].law(TRACES[0])
    return isinstance(law, MementoLaw) and not law.policy.mask_delimiters


@pytest.mark.parametrize(
    ("name", "arm"),
    [
        *((name, arm) for name in SEALABLE for arm in (Restart(), RestartRenumbered())),
        *((name, RestartBare()) for name in SEALABLE if has_bare_arm(name)),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_sealed_loss_equals_a_restarted_session(name: str, arm: Arm) -> None:
    """The session evicts and recomputes step by step; the layout does it in one pass."""
    model, tokens = tiny("qwen3"), TRACES[1]
    law = LAWS[name].law(tokens)
    sealed_arm = cast(SealedArm, arm.name)
    examples = [make_example(trace, labelled(trace), LAWS[name].law(trace), "sealed", sealed_arm) for trace in TRACES]
    with attending(model):
        session = Session(model, MARKUP, Policy(True, -1), [(0,)], arm.eraser, arm.adapt_law(law))
        (logits,) = session.advance([tokens], all_logits=True)
    torch.testing.assert_close(loss(model, examples, 1), expected_loss(logits, tokens), rtol=1e-5, atol=1e-5)
    opened = make_example(tokens, labelled(tokens), law, "memento")
    assert abs(loss(model, [opened], 0) - loss(model, examples, 1)) > 1e-3


def test_kept_blocks_cannot_be_sealed() -> None:
    with pytest.raises(UserError, match="cannot seal finished blocks that are kept"):
        make_example(TRACES[0], TRACES[0], LAWS["memento-last-1"].law(TRACES[0]), "sealed")


@pytest.mark.parametrize("name", ERASING)
@settings(max_examples=30)
@given(st.integers(0, 20), st.integers(1, 200), st.sampled_from(STAGES))
def test_truncation_keeps_as_many_tokens_as_fit(name: str, seed: int, width: int, stage: Stage) -> None:
    """Under Memento's law truncation also keeps pairs together; `test_train` tests it."""
    tokens = chat_trace(seed, rounds=1)
    law = LAWS[name].law(tokens)
    if name in SEALABLE:
        fitting = [n for n in range(len(tokens) + 1) if len(sealed_layout(tokens[:n], law).tokens) <= width]
        assert sealed_length(tokens, law, width) == max(fitting)
    if isinstance(law, MementoLaw):
        return
    kept = truncated_length(tokens, law, stage, width)
    assert len(make_example(tokens[:kept], tokens[:kept], law, stage).input_ids) <= width
    if kept < len(tokens):
        assert len(make_example(tokens[: kept + 1], tokens[: kept + 1], law, stage).input_ids) > width


def builder(law: Law, stage: Stage = "memento", **options: Any) -> ExampleBuilder:
    tokenizer = chat_tokenizer()
    return ExampleBuilder(tokenizer, "qwen3", Markup.of_any_tokenizer(tokenizer), law, stage, 256, **options)


def test_the_tokenizer_of_the_tests_has_the_chat_format_of_the_matrix() -> None:
    assert Chat.from_tokenizer(chat_tokenizer()) == CHAT
    assert Markup.from_tokenizer(chat_tokenizer(delimiters=True)) == MARKUP
    assert not Markup.of_any_tokenizer(chat_tokenizer()).has_delimiters


def test_rows_that_the_law_cannot_hold_are_set_aside(tmp_path: Path) -> None:
    """A prompt larger than the window; the other rows are used."""
    law = parse_law(LAW, CHAT)
    fits, too_long = (list(range(20, 20 + size)) for size in (4, 30))
    rows = [{"input_ids": [START, *prompt, START, HEAD, *range(15, 60)]} for prompt in (fits, too_long)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = write_examples(tmp_path / "examples.parquet", builder(law), [str(path)])
    assert (report.rows, report.used, report.erasing, report.dropped) == (2, 1, 1, {"outside the law": 1})
    reason = report.dropped_rows[0]["reason"]
    assert reason.startswith("outside the law: a prompt of 33 tokens and a stride of 8 do not fit") and "41" in reason
    with pytest.raises(UserError, match=r"row 1: outside the law: .* skip such rows"):
        write_examples(tmp_path / "examples.parquet", builder(law, bad_rows="refuse"), [str(path)])
    with pytest.raises(UserError, match=r"window:90,8 erases nothing from the rows of .* within 256 columns"):
        write_examples(tmp_path / "examples.parquet", builder(parse_law("window:90,8", CHAT)), [str(path)])
    assert not (tmp_path / "examples.parquet").with_suffix(".part").exists()


def test_rows_of_text_need_a_chat_template_but_no_delimiters() -> None:
    row = {"problem": "w20 w21", "response": "w30 <|block_start|> w31"}
    made, reason = builder(parse_law("sinks:1,4", CHAT)).build(row, 0, "row 0")
    assert made is not None and reason == ""
    assert made.input_ids.tolist() == [START, 14, 20, 21, 5, START, HEAD, 30, 0, 31, 5]
    assert made.labels.tolist() == [*[IGNORE_INDEX] * 7, 30, 0, 31, 5] and not made.kind.any()
    plain = builder(parse_law("sinks:1,4", Chat()))
    plain.tokenizer.chat_template = None
    made, reason = plain.build(row, 0, "row 0")
    assert made is None and reason.startswith("no chat template: ")
    made, _ = plain.build({"input_ids": list(range(20, 40))}, 0, "row 0")
    assert made is not None and made.expiry[1:4].tolist() == [6, 7, 8]


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return rows of token ids, each a chat with tool results."""
    path = tmp_path_factory.mktemp("rows") / "chats.jsonl"
    traces = [chat_trace(seed) for seed in range(16)]
    rows = [{"input_ids": trace, "labels": labelled(trace)} for trace in traces]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_stages_under_another_law_are_recorded(chats: Path, tmp_path: Path) -> None:
    """`full` records that nothing was erased; later stages share one law, under which the model is then measured."""
    model = save_chat_model(tmp_path / "stock")
    runs: list[tuple[Stage, list[str], str]] = [
        ("full", ["--law", "none"], "none"),
        ("memento", ["--law", LAW, "--samples", "2", "--sealed-share", "0.5"], LAW),
        ("sealed", [], LAW),
    ]
    for number, (stage, options, recorded) in enumerate(runs, 1):
        out = tmp_path / stage
        flags = [*QUICK, "--max_length", "512", "--max_steps", "2", "--learning_rate", "1e-3", *options]
        command("--model", model, "--data", str(chats), "--stage", stage, "--out", str(out), *flags)
        model = str(out / "model")
        checkpoint = gt.load(model)
        assert checkpoint.law.spec == recorded and len(checkpoint.stages) == number
        assert checkpoint.sealed == (stage == "sealed")
        run = json.loads((out / "run.json").read_text())
        assert run["law"]["spec"] == recorded and "policy" not in run
        if stage == "full":
            with pytest.raises(UserError, match="the law none erases nothing: give another --law"):
                command("--model", model, "--data", str(chats), "--out", str(tmp_path / "again"), *QUICK)
    for law, message in (("sinks:1,9", f"trained under the law {LAW}, but this run sets sinks:1,9"), (LAW, None)):
        again = ["--model", model, "--data", str(chats), "--law", law, "--out", str(tmp_path / "again"), *QUICK]
        if message is None:
            command(*again, "--max_steps", "1")
            continue
        with pytest.raises(UserError, match=message):
            command(*again)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_trainer_loss_equals_the_loss_outside_the_trainer(stage: Stage, chats: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "run", save_chat_model(tmp_path / "stock")
    flags = [*QUICK, "--max_length", "512", "--max_steps", "1", "--learning_rate", "0", "--limit", "4"]
    command("--model", model, "--data", str(chats), "--stage", stage, "--law", "tools:0", "--out", str(out), *flags)
    traces = [json.loads(line)["input_ids"] for line in chats.read_text().splitlines()[:4]]
    loaded = gt.load(model, law="tools:0")
    per_token, labels = nll(
        loaded.model,
        [packed(make_example(trace, labelled(trace), loaded.law, stage)) for trace in traces],
        "sdpa",
    )
    expected = float(per_token.sum() / (labels != IGNORE_INDEX).sum())
    log = pd.read_parquet(out / "samples.parquet").iloc[0]
    assert log["loss"] == pytest.approx(expected, rel=1e-4) and log["loss_text"] == pytest.approx(expected, rel=1e-4)
    report = json.loads((out / "examples.json").read_text())
    assert report["erasing"] == (0 if stage == "full" else 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--law", "banana"], "there is no law 'banana'"),
        (["--law", "none"], "the law none erases nothing"),
        (["--law", LAW, "--keep-delimiters"], f"the law {LAW} replaces Memento's policy: leave out mask_delimiters"),
        (["--law", "log:LOG", "--samples", "2"], "cannot generate: leave out --samples"),
        (["--law", "window:900,1"], "window:900,1 erases nothing from the rows"),
        (["--law", "log:LOG"], "16 outside the law; .* begins with these"),
        (["--law", "memento"], "the tokenizer has no"),
        (["--law", LAW, "--model", "toy-open"], "toy-open was trained under the law memento, but this run sets window"),
    ],
)
def test_invalid_input_is_refused(options: list[str], message: str, chats: Path, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"token_ids": [1, 2, 3], "evicted_at": [3, null, null]}')
    options = [option.replace("LOG", str(tmp_path / "log.jsonl")) for option in options]
    model = [] if "--model" in options else ["--model", save_chat_model(tmp_path / "stock")]
    out = tmp_path / "run"
    with pytest.raises(UserError, match=message) as caught:
        command(*model, "--data", str(chats), "--out", str(out), *QUICK, "--max_length", "512", *options)
    assert "\n" not in str(caught.value) and not out.exists()


def test_a_law_without_blocks_has_no_stage_of_its_own() -> None:
    """The stage `full` is plain attention under every law."""
    tokens = TRACES[0]
    full = make_example(tokens, tokens, parse_law(LAW, CHAT), "full")
    kept = make_example(tokens, tokens, KeepAll(), "memento")
    for name, column in full.columns.items():
        np.testing.assert_array_equal(column, kept.columns[name])
