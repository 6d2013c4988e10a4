"""What `ghosttrace sft` refuses, rows that cannot be used, options, and delimiters for a model that has none."""

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
from ghosttrace.law.expiry import NEVER, Policy, expiry
from ghosttrace.model.checkpoint import load
from ghosttrace.training.delimiters import RELATED_WORDS, add_delimiters
from ghosttrace.training.examples import IGNORE_INDEX, STAGES, Stage
from ghosttrace.training.prepare import ExampleBuilder, is_sealed, write_examples
from ghosttrace.training.recipe import parse_trainer_flags


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ledger_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


@pytest.fixture
def blank(tmp_path: Path) -> Path:
    return blank_model(tmp_path / "blank")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--stage", "half"], "--stage is one of full, memento, sealed"),
        (["--sealed-share", "0.3", "--stage", "full"], "belongs to --stage memento"),
        (["--kernel", "magic"], "--kernel is segments"),
        (["--bad-rows", "eat"], "--bad-rows is skip or refuse"),
        (["--kernel", "flex"], "FlexAttention has no backward pass on a CPU"),
        (["--learning_speed", "3"], "the trainer does not take"),
        (["--learning_rate", "fast"], "the trainer does not take"),
        (["--max_length", "4096"], "takes at most 1024 positions"),
        (["--keep-delimiters"], "was trained with mask_delimiters = True, and this stage is told False"),
        (["--keep-last-n-blocks", "2"], "was trained with keep_last_n_blocks = 0"),
        (["--map-delimiters", "block_start=<|nothing|>"], "was trained with other tokens for block_start"),
        (["--eval_strategy", "steps"], "give --eval-data"),
        (["--data", "nothing.jsonl"], "no file nothing.jsonl"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(options: list[str], said: str, rows: Path, tmp_path: Path) -> None:
    data = [] if "--data" in options else ["--data", str(rows)]
    with pytest.raises(UserError, match=said) as caught:
        command("--model", "toy-open", *data, "--out", str(tmp_path / "run"), *QUICK, *options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_policy_must_be_told(rows: Path, blank: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give --mask-delimiters"):
        command("--model", str(blank), "--data", str(rows), "--out", str(tmp_path / "run"), *QUICK)


def test_rows_that_cannot_be_used_are_named(rows: Path, tmp_path: Path) -> None:
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
    assert report["dropped_rows"][0]["reason"] == "unbalanced delimiters: block_start where summary_end is due"
    assert report["dropped_rows"][1]["reason"].endswith("it ends before summary_start")
    with pytest.raises(UserError, match="row torn: unbalanced delimiters"):
        command(*base, "--out", str(tmp_path / "other"), "--bad-rows", "refuse")


@pytest.mark.slow
def test_rows_in_tokens_are_taken_as_they_are_and_their_expiry_is_checked(tmp_path: Path) -> None:
    tokenizer, markup = load("toy-open").tokenizer, load("toy-open").markup
    one = Ledger.sample(np.random.default_rng(0), 2)
    ids = load("toy-open").prompt_ids(one.prompt) + tokenizer.convert_tokens_to_ids(one.response())
    labels = [-100] * 40 + ids[40:]
    times = expiry(ids, markup, Policy(True)).tolist()
    path, base = tmp_path / "rows.jsonl", ["--model", "toy-open", *QUICK, "--max_steps", "1"]
    for number, (changed, said) in enumerate(
        [
            ({}, None),
            ({"expiry": times}, None),
            ({"expiry": [9, *times[1:]]}, "disagrees with its ids at token 0"),
            ({"labels": labels[1:]}, "equally long"),
            ({"labels": [*labels[1:], 5]}, "a label is the token of its own place"),
        ]
    ):
        path.write_text(json.dumps({"input_ids": ids, "labels": labels} | changed))
        run = ["--data", str(path), "--out", str(tmp_path / str(number))]
        if said is None:
            command(*base, *run)
            assert json.loads((tmp_path / str(number) / "examples.json").read_text())["loss_tokens"] == len(ids) - 40
        else:
            with pytest.raises(UserError, match=said):
                command(*base, *run)


def reader(stage: Stage = "memento", **told: Any) -> ExampleBuilder:
    checkpoint = load("toy-open")
    make = partial(ExampleBuilder, checkpoint.tokenizer, "qwen3", checkpoint.markup, stage=stage, max_length=256)
    return make(**({"policy": Policy(True)} | told))


def ledger_ids(level: int = 2) -> tuple[list[int], list[int]]:
    """Ids and labels of a ledger, its answer and all of its pairs learned."""
    checkpoint, one = load("toy-open"), Ledger.sample(np.random.default_rng(0), level)
    prompt = checkpoint.prompt_ids(one.prompt)
    response = checkpoint.tokenizer.convert_tokens_to_ids(one.response())
    return prompt + response, [IGNORE_INDEX] * len(prompt) + response


IDS, LABELS = ledger_ids()
NUMBERS = "broken ids: input_ids and labels are lists of whole numbers, equally long"
TIMES = "broken expiry: it is a list of whole numbers of 64 bits"
BAD_ROWS: list[tuple[Any, str]] = [
    (5, "no columns: a row is an object"),
    (None, "no columns: a row is an object"),
    ("<think>", "no columns: a row is an object"),
    ({"input_ids": None}, NUMBERS),
    ({"input_ids": 7}, NUMBERS),
    ({"input_ids": "123"}, NUMBERS),
    ({"input_ids": [True, False]}, NUMBERS),
    ({"input_ids": []}, "no token to learn"),
    ({"input_ids": IDS, "labels": None}, NUMBERS),
    ({"input_ids": IDS, "labels": 3}, NUMBERS),
    ({"input_ids": IDS, "labels": LABELS[1:]}, NUMBERS),
    ({"input_ids": IDS, "labels": [2**70, *LABELS[1:]]}, "misplaced labels: a label is the token of its own place"),
    ({"input_ids": IDS, "labels": [IDS[0]] + [IGNORE_INDEX] * (len(IDS) - 1)}, "no token to learn"),
    ({"input_ids": [-1, *IDS]}, "ids outside the vocabulary: they lie between 0 and 34, and one is -1"),
    ({"input_ids": [*IDS, 35]}, "ids outside the vocabulary: they lie between 0 and 34, and one is 35"),
    ({"input_ids": [*IDS, 2**70]}, "ids outside the vocabulary"),
    *(
        ({"input_ids": IDS, "labels": LABELS, "expiry": times}, TIMES)
        for times in (None, 4, "abc", ["1"] * len(IDS), [float("nan")] * len(IDS), [2**70] * len(IDS))
    ),
    ({"input_ids": IDS[IDS.index(3) + 1 :]}, "delimiters outside the assistant's turn: block_start at token 1 "),
    ({"problem": None, "response": "<think>"}, "no trace: it has a 'problem' that is no text"),
    ({"problem": "w1", "response": None}, "no trace: it has a 'response' that is no text"),
    ({"problem": "w1"}, "no trace: it has neither 'segments' nor 'response'"),
    ({"problem": "w1", "segments": [{"type": "block", "text": None}]}, "no trace: it has 'segments' that cannot"),
    ({"problem": "w1", "segments": [{"type": ["block"], "text": ""}]}, "no trace: it has 'segments' that cannot"),
]


@pytest.mark.parametrize("number", range(len(BAD_ROWS)), ids=lambda number: f"{BAD_ROWS[number][1][:20]} {number}")
def test_each_bad_row_has_a_reason(number: int) -> None:
    made, reason = reader().build(BAD_ROWS[number][0], 0, "row 0")
    assert made is None
    assert reason.startswith(BAD_ROWS[number][1]) and "\n" not in reason


def test_bad_rows_are_counted_and_the_others_used(tmp_path: Path) -> None:
    """From a file, where they come among good ones; and alone, where the first is named."""
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
        with pytest.raises(UserError, match="mend the row, or leave such rows out"):
            write_examples(tmp_path / "examples.parquet", reader(bad_rows="refuse"), [str(path)])


def test_a_null_from_parquet_is_no_problem_to_ask(tmp_path: Path) -> None:
    rows = [{"problem": "w1", "response": "<think>"}, {"problem": None, "response": "<think>"}]
    parquet.write_table(Table.from_pylist(rows), tmp_path / "rows.parquet")
    report = write_examples(tmp_path / "examples.parquet", reader(), [str(tmp_path / "rows.parquet")])
    assert (report.used, report.dropped) == (1, {"no trace": 1})


def test_a_pair_that_a_turn_cuts_is_dropped() -> None:
    """The law sees no such pair, so that its block would be trained on unerased."""
    markup = load("toy-open").markup
    assert markup.turn_end is not None
    end = IDS.index(markup.block_end)
    cut = [*IDS[:end], markup.turn_end, *markup.assistant_header, *IDS[end:]]
    made, reason = reader().build({"input_ids": cut}, 0, "row 0")
    assert (made, reason) == (None, "unbalanced delimiters: a turn begins or ends where block_end is due")


@pytest.mark.parametrize("keep", [0, -1])
@pytest.mark.parametrize("width", [256, 80])
@pytest.mark.parametrize(("stage", "share"), [*((stage, 0.0) for stage in STAGES), ("memento", 0.5)])
def test_a_right_expiry_column_is_right_in_every_stage(stage: Stage, share: float, width: int, keep: int) -> None:
    """It describes the row, not what a stage or a cut makes of it."""
    told = reader(stage, sealed_share=share, max_length=width, policy=Policy(True, keep_last_n_blocks=keep))
    times = expiry(IDS, told.markup, Policy(True))
    assert (times != NEVER).any()
    assert len({is_sealed(number, 0.5) for number in range(8)}) == 2
    for number in range(8):
        row = {"input_ids": IDS, "labels": LABELS, "expiry": times.tolist()}
        made, reason = told.build(row, number, "row 0")
        assert made is not None and reason in ("", "truncated")
        with pytest.raises(UserError, match="row 0: its expiry column disagrees with its ids at token 1:"):
            told.build(row | {"expiry": [NEVER, 9, *times[2:].tolist()]}, number, "row 0")


@pytest.mark.parametrize(
    ("invited", "response", "left"),
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
def test_a_template_that_invites_to_think_does_it_once(invited: str, response: str, left: str) -> None:
    class Spelled:
        """Its ids are characters."""

        def apply_chat_template(self, turns: list[dict[str, str]], **told: Any) -> str:
            return f"<|user|>{turns[0]['content']}<|assistant|>{invited}"

        def __call__(self, text: str, **told: Any) -> dict[str, list[int]]:
            return {"input_ids": [ord(letter) for letter in text]}

    ids = tokenize_trace(TraceText("w1", response), Spelled(), None, {})
    prompt, answer = ("".join(chr(number) for number in part) for part in ids)
    assert (prompt, answer) == (f"<|user|>w1<|assistant|>{invited}", left)


def test_the_paper_is_the_default() -> None:
    args, _ = parse_trainer_flags(["--bf16", "false"])
    assert (args.learning_rate, args.max_length, args.seed) == (8e-5, 32_768, 42)
    assert (args.adam_beta1, args.adam_beta2, args.weight_decay, args.max_grad_norm) == (0.9, 0.999, 0.0, 1.0)
    assert args.gradient_accumulation_steps * args.per_device_train_batch_size == 512
    assert str(args.lr_scheduler_type) in ("cosine", "SchedulerType.COSINE") and args.num_train_epochs == 5


def test_options_come_from_yaml_too(tmp_path: Path) -> None:
    (tmp_path / "sft.yaml").write_text("learning_rate: 0.001\nbf16: false\nuse_peft: true\n")
    args, model_args = parse_trainer_flags(["--config", str(tmp_path / "sft.yaml"), "--learning_rate", "0.002"])
    assert args.learning_rate == 0.002 and model_args.use_peft


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("room", [0, 40])
def test_new_tokens_begin_as_the_mean_of_related_words(tied: bool, room: int) -> None:
    """In both tables where they are not tied; nothing else moves; the table grows only where it must."""
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
    with pytest.raises(UserError, match="one spelling"):
        add_delimiters(model, tokenizer, names={"block_end": "<|block_start|>"})


def test_init_tokens_writes_a_model_that_knows_its_policy(blank: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds something already"):
        cli.app(["init-tokens", "toy-open", str(Path(__file__).parent)], standalone_mode=False)
    told = ["--map-delimiters", "block_end=*", "--mask-delimiters"]
    cli.app(["init-tokens", str(blank), str(tmp_path / "start"), *told], standalone_mode=False)
    found = load(str(tmp_path / "start"))
    assert found.policy == Policy(True, keep_last_n_blocks=-1)
    assert found.markup.block_end == found.tokenizer.get_vocab()["*"]
