"""Input of `ghosttrace sft`: invalid options, unusable rows, and delimiters added to a model."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.families import FAMILIES
from helpers.training import QUICK, blank_model, command, ledger_rows
from pyarrow import Table, parquet
from transformers import AutoModelForCausalLM

from ghosttrace.bench.ledger import Ledger
from ghosttrace.cli import main as cli
from ghosttrace.data.read import TraceText, tokenize_trace
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import NEVER, MementoLaw, Policy, expiry
from ghosttrace.model.checkpoint import load, load_config, load_tokenizer
from ghosttrace.training.delimiters import RELATED_WORDS, add_delimiters
from ghosttrace.training.examples import IGNORE_INDEX, SEALED_ARMS, STAGES, SealedArm, Stage, make_example
from ghosttrace.training.format_samples import read_prompts
from ghosttrace.training.prepare import ExampleBuilder, is_sealed, write_examples
from ghosttrace.training.recipe import Recipe, make_example_builder, parse_trainer_flags


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ledger_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


@pytest.fixture
def blank(tmp_path: Path) -> Path:
    return blank_model(tmp_path / "blank")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stage", "half"], "--stage must be one of full, memento, sealed"),
        (["--sealed-share", "0.3", "--stage", "full"], "requires --stage memento"),
        (["--sealed-arms", "restart-bare"], "requires --stage sealed or --sealed-share"),
        (["--sealed-share", "0.3", "--sealed-arms", "swap"], "must be one or more of restart, restart-bare"),
        (["--sealed-share", "0.3", "--sealed-arms", "restart-bare"], "needs blocks whose delimiters are retained"),
        (["--kernel", "magic"], "--kernel must be segments"),
        (["--bad-rows", "eat"], "--bad-rows must be skip or refuse"),
        (["--kernel", "flex"], "FlexAttention has no backward pass on a CPU"),
        (["--learning_speed", "3"], "the trainer does not accept"),
        (["--learning_rate", "fast"], "the trainer does not accept"),
        (["--max_length", "4096"], "takes at most 1024 positions"),
        (["--keep-delimiters"], "was trained with mask_delimiters = True, but this run sets False"),
        (["--keep-last-n-blocks", "2"], "was trained with keep_last_n_blocks = 0"),
        (["--map-delimiters", "block_start=<|nothing|>"], "was trained with other tokens for block_start"),
        (["--eval_strategy", "steps"], "give --eval-data"),
        (["--data", "nothing.jsonl"], "no file nothing.jsonl"),
    ],
)
def test_invalid_input_is_refused(options: list[str], message: str, rows: Path, tmp_path: Path) -> None:
    data = [] if "--data" in options else ["--data", str(rows)]
    with pytest.raises(UserError, match=message) as caught:
        command("--model", "toy-open", *data, "--out", str(tmp_path / "run"), *QUICK, *options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_model_without_a_policy_needs_the_option(rows: Path, blank: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give --mask-delimiters"):
        command("--model", str(blank), "--data", str(rows), "--out", str(tmp_path / "run"), *QUICK)


def test_unusable_rows_are_reported(rows: Path, tmp_path: Path) -> None:
    lines = rows.read_text().splitlines()
    good = json.loads(lines[0])
    cut = good | {"id": "torn", "response": good["response"].replace("<|summary_end|>", "", 1)}
    open_ended = good | {"response": good["response"].rpartition("<|summary_start|>")[0]}
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*lines[:8], json.dumps(cut), json.dumps(open_ended)]))
    out = tmp_path / "run"
    base = ["--model", "toy-open", "--data", str(path), *QUICK, "--max_steps", "1"]
    command(*base, "--out", str(out))
    report = json.loads((out / "examples.json").read_text())
    assert (report["rows"], report["used"], report["dropped"]) == (10, 8, {"unbalanced delimiters": 2})
    assert report["dropped_rows"][0]["row"].endswith("row torn")
    assert report["dropped_rows"][0]["reason"] == "unbalanced delimiters: block_start where summary_end is expected"
    assert report["dropped_rows"][1]["reason"].endswith("the trace ends before summary_start")
    with pytest.raises(UserError, match="row torn: unbalanced delimiters"):
        command(*base, "--out", str(tmp_path / "other"), "--bad-rows", "refuse")


@pytest.mark.slow
def test_tokenized_rows_are_used_unchanged_and_their_expiry_is_checked(tmp_path: Path) -> None:
    tokenizer, markup = load("toy-open").tokenizer, load("toy-open").markup
    ledger = Ledger.sample(np.random.default_rng(0), 2)
    ids = load("toy-open").prompt_ids(ledger.prompt) + tokenizer.convert_tokens_to_ids(ledger.response())
    labels = [-100] * 40 + ids[40:]
    times = expiry(ids, markup, Policy(True)).tolist()
    path, base = tmp_path / "rows.jsonl", ["--model", "toy-open", *QUICK, "--max_steps", "1"]
    for number, (changed, message) in enumerate(
        [
            ({}, None),
            ({"expiry": times}, None),
            ({"expiry": [9, *times[1:]]}, "disagrees with input_ids at token 0"),
            ({"labels": labels[1:]}, "of equal length"),
            ({"labels": [*labels[1:], 5]}, "a label must be the input id at the same index"),
        ]
    ):
        path.write_text(json.dumps({"input_ids": ids, "labels": labels} | changed))
        run = ["--data", str(path), "--out", str(tmp_path / str(number))]
        if message is None:
            command(*base, *run)
            assert json.loads((tmp_path / str(number) / "examples.json").read_text())["loss_tokens"] == len(ids) - 40
        else:
            with pytest.raises(UserError, match=message):
                command(*base, *run)


def reader(stage: Stage = "memento", **options: Any) -> ExampleBuilder:
    checkpoint = load("toy-open")
    make = partial(ExampleBuilder, checkpoint.tokenizer, "qwen3", checkpoint.markup, stage=stage, max_length=256)
    return make(**({"law": MementoLaw(checkpoint.markup, Policy(True))} | options))


def ledger_ids(level: int = 2) -> tuple[list[int], list[int]]:
    """Return ids and labels of a ledger trace, with loss on the answer and on all pairs."""
    checkpoint, ledger = load("toy-open"), Ledger.sample(np.random.default_rng(0), level)
    prompt = checkpoint.prompt_ids(ledger.prompt)
    response = checkpoint.tokenizer.convert_tokens_to_ids(ledger.response())
    return prompt + response, [IGNORE_INDEX] * len(prompt) + response


IDS, LABELS = ledger_ids()
NUMBERS = "broken ids: input_ids and labels must be lists of integers of equal length"
TIMES = "broken expiry: it must be a list of 64-bit integers"
BAD_ROWS: list[tuple[Any, str]] = [
    (5, "no columns: a row must be an object"),
    (None, "no columns: a row must be an object"),
    ("<think>", "no columns: a row must be an object"),
    ({"input_ids": None}, NUMBERS),
    ({"input_ids": 7}, NUMBERS),
    ({"input_ids": "123"}, NUMBERS),
    ({"input_ids": [True, False]}, NUMBERS),
    ({"input_ids": []}, "no token to learn"),
    ({"input_ids": IDS, "labels": None}, NUMBERS),
    ({"input_ids": IDS, "labels": 3}, NUMBERS),
    ({"input_ids": IDS, "labels": LABELS[1:]}, NUMBERS),
    ({"input_ids": IDS, "labels": [2**70, *LABELS[1:]]}, "misplaced labels: a label must be the input id at"),
    ({"input_ids": IDS, "labels": [IDS[0]] + [IGNORE_INDEX] * (len(IDS) - 1)}, "no token to learn"),
    ({"input_ids": [-1, *IDS]}, "ids outside the vocabulary: found -1, ids must be from 0 to 34"),
    ({"input_ids": [*IDS, 35]}, "ids outside the vocabulary: found 35, ids must be from 0 to 34"),
    ({"input_ids": [*IDS, 2**70]}, "ids outside the vocabulary"),
    *(
        ({"input_ids": IDS, "labels": LABELS, "expiry": times}, TIMES)
        for times in (None, 4, "abc", ["1"] * len(IDS), [float("nan")] * len(IDS), [2**70] * len(IDS))
    ),
    ({"input_ids": IDS[IDS.index(3) + 1 :]}, "delimiters outside the assistant's turn: block_start at token 1 "),
    ({"problem": None, "response": "<think>"}, "no trace: it has a 'problem' that is not text"),
    ({"problem": "w1", "response": None}, "no trace: it has a 'response' that is not text"),
    ({"problem": "w1"}, "no trace: it has neither 'segments' nor 'response'"),
    ({"problem": "w1", "segments": [{"type": "block", "text": None}]}, "no trace: it has invalid 'segments'"),
    ({"problem": "w1", "segments": [{"type": ["block"], "text": ""}]}, "no trace: it has invalid 'segments'"),
]


@pytest.mark.parametrize("number", range(len(BAD_ROWS)), ids=lambda number: f"{BAD_ROWS[number][1][:20]} {number}")
def test_each_unusable_row_has_a_reason(number: int) -> None:
    made, reason = reader().build(BAD_ROWS[number][0], 0, "row 0")
    assert made is None
    assert reason.startswith(BAD_ROWS[number][1]) and "\n" not in reason


def test_unusable_rows_are_counted_and_others_used(tmp_path: Path) -> None:
    """In a file with usable rows they are counted; without usable rows the first is reported."""
    good = {"input_ids": IDS, "labels": LABELS}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [good, *(row for row, _ in BAD_ROWS), good]))
    report = write_examples(tmp_path / "examples.parquet", reader(), [str(path)])
    assert (report.rows, report.used, sum(report.dropped.values())) == (len(BAD_ROWS) + 2, 2, len(BAD_ROWS))
    assert report.dropped["broken expiry"] == 6 and report.dropped["no columns"] == 3
    for row, reason in BAD_ROWS:
        path.write_text(json.dumps(row))
        with pytest.raises(UserError, match=r"no row of .* can be trained on") as caught:
            write_examples(tmp_path / "examples.parquet", reader(), [str(path)])
        assert f"row 0: {reason}" in str(caught.value)
        with pytest.raises(UserError, match="fix the row, or skip such rows"):
            write_examples(tmp_path / "examples.parquet", reader(bad_rows="refuse"), [str(path)])


def test_null_problem_from_parquet_is_refused(tmp_path: Path) -> None:
    rows = [{"problem": "w1", "response": "<think>"}, {"problem": None, "response": "<think>"}]
    parquet.write_table(Table.from_pylist(rows), tmp_path / "rows.parquet")
    report = write_examples(tmp_path / "examples.parquet", reader(), [str(tmp_path / "rows.parquet")])
    assert (report.used, report.dropped) == (1, {"no trace": 1})


def test_pair_split_by_a_turn_is_dropped() -> None:
    """The law ignores such a pair, so its block would be trained on without erasure."""
    markup = load("toy-open").markup
    assert markup.turn_end is not None
    end = IDS.index(markup.block_end)
    cut = [*IDS[:end], markup.turn_end, *markup.assistant_header, *IDS[end:]]
    made, reason = reader().build({"input_ids": cut}, 0, "row 0")
    assert (made, reason) == (None, "unbalanced delimiters: a turn begins or ends where block_end is expected")


@pytest.mark.parametrize("keep", [0, -1])
@pytest.mark.parametrize("width", [256, 80])
@pytest.mark.parametrize(("stage", "share"), [*((stage, 0.0) for stage in STAGES), ("memento", 0.5)])
def test_valid_expiry_column_is_accepted_in_every_stage(stage: Stage, share: float, width: int, keep: int) -> None:
    """The column describes the complete row, not the result of a stage or of truncation."""
    law = MementoLaw(load("toy-open").markup, Policy(True, keep_last_n_blocks=keep))
    builder = reader(stage, sealed_share=share, max_length=width, law=law)
    times = expiry(IDS, builder.markup, Policy(True))
    assert (times != NEVER).any()
    assert len({is_sealed(number, 0.5) for number in range(8)}) == 2
    for number in range(8):
        row = {"input_ids": IDS, "labels": LABELS, "expiry": times.tolist()}
        made, reason = builder.build(row, number, "row 0")
        assert made is not None and reason in ("", "truncated")
        with pytest.raises(UserError, match="row 0: the expiry column disagrees with input_ids at token 1:"):
            builder.build(row | {"expiry": [NEVER, 9, *times[2:].tolist()]}, number, "row 0")


@pytest.mark.parametrize("arm", SEALED_ARMS)
def test_prompt_and_compression_of_a_sealed_row_with_erasures_in_its_prompt(arm: SealedArm, tmp_path: Path) -> None:
    """Closed-up positions occur more than once, so that they do not tell the tokens apart."""
    law = MementoLaw(load("toy-open").markup, Policy(mask_delimiters=False))
    labels = [IGNORE_INDEX] * (len(IDS) - 5) + LABELS[-5:]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"input_ids": IDS, "labels": labels}))
    builder = reader("sealed", law=law, sealed_arms=(arm,))
    report = write_examples(tmp_path / "examples.parquet", builder, [str(path)])
    assert read_prompts(tmp_path / "examples.parquet", 1) == [IDS[:-5]]
    assert report.compression > 1.05


def test_sealed_rows_take_the_arms_in_turn() -> None:
    """Each row is laid out as `make_example` does for its arm, and the three layouts differ."""
    law = MementoLaw(load("toy-open").markup, Policy(mask_delimiters=False))
    made = [
        reader("sealed", law=law, sealed_arms=SEALED_ARMS).build({"input_ids": IDS, "labels": LABELS}, number, "")[0]
        for number in range(len(SEALED_ARMS))
    ]
    layouts = [make_example(IDS, LABELS, law, "sealed", arm) for arm in SEALED_ARMS]
    assert len({example.position_ids.tobytes() for example in layouts}) == len(SEALED_ARMS)
    for example, expected in zip(made, layouts, strict=True):
        assert example is not None
        for name, column in expected.columns.items():
            np.testing.assert_array_equal(example.columns[name], column)


@pytest.mark.parametrize(
    ("invited", "response", "answer_text"),
    [
        ("<think>\n", "<think>\n12</think>", "12</think>"),
        ("<think>\n", "<think>12</think>", "12</think>"),
        ("<think>\n", "<think>\n\n12", "\n12"),
        ("<think>\n", "12<think>", "12<think>"),
        ("<think>", "<think>\n12</think>", "\n12</think>"),
        ("<think>", "12</think>", "12</think>"),
        ("", "<think>\n12</think>", "<think>\n12</think>"),
    ],
)
def test_think_tag_of_the_template_is_not_repeated(invited: str, response: str, answer_text: str) -> None:
    class Spelled:
        """Tokenizer whose ids are characters."""

        def apply_chat_template(self, turns: list[dict[str, str]], **options: Any) -> str:
            return f"<|user|>{turns[0]['content']}<|assistant|>{invited}"

        def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
            return {"input_ids": [ord(letter) for letter in text]}

    ids = tokenize_trace(TraceText("w1", response), Spelled(), None, {})
    prompt, answer = ("".join(chr(number) for number in part) for part in ids)
    assert (prompt, answer) == (f"<|user|>w1<|assistant|>{invited}", answer_text)


def test_defaults_are_those_of_the_paper() -> None:
    args, _ = parse_trainer_flags(["--bf16", "false"])
    assert (args.learning_rate, args.max_length, args.seed) == (8e-5, 32_768, 42)
    assert (args.adam_beta1, args.adam_beta2, args.weight_decay, args.max_grad_norm) == (0.9, 0.999, 0.0, 1.0)
    assert args.gradient_accumulation_steps * args.per_device_train_batch_size == 512
    assert str(args.lr_scheduler_type) in ("cosine", "SchedulerType.COSINE") and args.num_train_epochs == 5


def test_default_length_is_at_most_that_of_the_model() -> None:
    args, _ = parse_trainer_flags(["--bf16", "false"])
    recipe = Recipe("toy-open", ("rows.jsonl",), "memento")
    built = make_example_builder(recipe, load_config("toy-open"), load_tokenizer("toy-open"), args)
    assert built.max_length == args.max_length == 1024


def test_options_may_come_from_yaml(tmp_path: Path) -> None:
    (tmp_path / "sft.yaml").write_text("learning_rate: 0.001\nbf16: false\nuse_peft: true\n")
    args, model_args = parse_trainer_flags(["--config", str(tmp_path / "sft.yaml"), "--learning_rate", "0.002"])
    assert args.learning_rate == 0.002 and model_args.use_peft


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("room", [0, 40])
def test_new_tokens_start_as_the_mean_of_related_words(tied: bool, room: int) -> None:
    """In both tables if they are not tied; other rows are unchanged, and a table grows only if needed."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", *sorted({word for related in RELATED_WORDS.values() for word in related}), "A"]
    core = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")
    config = FAMILIES["qwen3"]()
    config.vocab_size, config.tie_word_embeddings = len(words) + room, tied
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    before = [model.get_input_embeddings().weight.clone(), model.get_output_embeddings().weight.clone()]
    added = add_delimiters(model, tokenizer, names={"block_end": "A"})
    assert list(added) == ["block_start", "summary_start", "summary_end"]
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    assert (tables[0] is tables[1]) == tied
    for old, new in zip(before, tables, strict=True):
        assert len(new) == max(len(words) + room, len(words) + 3)
        assert torch.equal(old[: len(words)], new[: len(words)])
        for name, number in added.items():
            gap = new[number] - old[[words.index(word) for word in RELATED_WORDS[name]]].mean(0)
            assert 0.002 < gap.std() < 0.03
    with pytest.raises(UserError, match="same spelling"):
        add_delimiters(model, tokenizer, names={"block_end": "<|block_start|>"})


def test_init_tokens_records_the_policy(blank: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not an empty folder"):
        cli.app(["init-tokens", "toy-open", str(Path(__file__).parent)], standalone_mode=False)
    options = ["--map-delimiters", "block_end=*", "--mask-delimiters"]
    cli.app(["init-tokens", str(blank), str(tmp_path / "start"), *options], standalone_mode=False)
    checkpoint = load(str(tmp_path / "start"))
    assert checkpoint.policy == Policy(True, keep_last_n_blocks=-1)
    assert checkpoint.markup.block_end == checkpoint.tokenizer.get_vocab()["*"]


def test_init_tokens_replaces_the_chat_template(blank: Path, tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text(load(str(blank), mask_delimiters=True).tokenizer.chat_template + "{# new #}")
    options = ["--mask-delimiters", "--chat-template", str(tmp_path / "chat.jinja")]
    cli.app(["init-tokens", str(blank), str(tmp_path / "start"), *options], standalone_mode=False)
    assert load(str(tmp_path / "start")).tokenizer.chat_template.endswith("{# new #}")
    with pytest.raises(UserError, match="cannot be read as UTF-8 text: give --chat-template"):
        cli.app(["init-tokens", str(blank), str(tmp_path / "x"), *options[:2], str(tmp_path)], standalone_mode=False)
    assert not (tmp_path / "x").exists()
