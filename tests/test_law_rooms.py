"""Laws in the commands: which run under any law, what a checkpoint records of its law, which commands refuse it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.families import FAMILIES, tiny
from helpers.laws import CHAT, MARKUP, TEXT, chat_trace
from helpers.paths import DATA, requires_data
from helpers.stock import NEEDED, stock

import ghosttrace as gt
from ghosttrace.ablation.arms import Memento, Restart, Swap
from ghosttrace.cli import main as cli
from ghosttrace.data.tokens import TokenTrace, load_traces
from ghosttrace.ghost_bits.likelihood import log2_probabilities
from ghosttrace.ghost_bits.measure import measured_tokens
from ghosttrace.law.chat import Chat
from ghosttrace.law.parse import parse_law
from ghosttrace.model.checkpoint import Checkpoint, load_tokenizer, resolve_pretrained_path
from ghosttrace.pipeline.leak_check import LeakCheck

LAW = "window:60,20"


def test_bits_under_another_law(tmp_path: Path) -> None:
    run = gt.bits("toy-mixed", bench="ledger-h1", arms=["restart", "noise"], law=LAW, limit=2, out=tmp_path / "run")
    assert run.valid
    assert run.configuration["law"]["spec"] == LAW and run.configuration["policy"]["keep_last_n_blocks"] == -1
    sample = run.samples.iloc[0]
    assert min(sample["token_index"]) == 61 and max(sample["distance"]) == 20
    opened = gt.open_run(tmp_path / "run")
    assert "erasures before" in str(opened.figure("bits").axes[1].get_xlabel())
    whole = run.results[(run.results["by"] == "all")].set_index("arm")["bits"]
    assert abs(whole["placebo"]) < 1e-5 < abs(whole["noise"])


def test_tokens_are_measured_from_the_first_erasure() -> None:
    trace = TokenTrace("file", "0", [], list(range(20, 32)))
    table = measured_tokens(trace, parse_law("window:6,3,prompt=0", Chat()), load_tokenizer("toy-mixed"))
    assert table["token_index"].tolist() == [7, 8, 9, 10, 11]
    assert table["block"].tolist() == [1, 1, 1, 2, 2] and table["distance"].tolist() == [1, 2, 3, 1, 2]


def test_log_probabilities_of_a_batch_equal_those_of_single_traces() -> None:
    law = parse_law("chunks:6,2,prompt=3", Chat())
    checkpoint = Checkpoint("llama", tiny("llama"), None, MARKUP, gt.Policy(False, -1), other_law=law)
    traces = [chat_trace(seed)[: 40 + 10 * seed] for seed in range(3)]
    for arm in (Memento(), Restart()):
        for row, together in enumerate(log2_probabilities(checkpoint, arm, traces)):
            (alone,) = log2_probabilities(checkpoint, arm, [traces[row]])
            np.testing.assert_allclose(together, alone, atol=1e-4)


def test_ablate_under_another_law(tmp_path: Path) -> None:
    more = {"limit": 1, "sampling": {"max_new_tokens": 12}, "out": tmp_path / "run"}
    run = gt.ablate("toy-mixed", "ledger-h0", ["full", "restart"], law="turns:1,1", **more)
    rows = run.samples.set_index("arm")
    for arm, spec in (("memento", "turns:1,1"), ("full", "none"), ("restart", "turns:1,1")):
        assert run.configuration["arms"][arm]["law"]["spec"] == spec
        ids = [*rows.loc[arm, "prompt_ids"], *rows.loc[arm, "response_ids"]]
        law = parse_law(spec, Chat.from_tokenizer(gt.load("toy-mixed").tokenizer))
        assert rows.loc[arm, "peak_kv_tokens"] == gt.alive(gt.expiry(ids[:-1], law)).max()
    assert run.valid and "turns:1,1" in json.dumps(run.configuration) and "<html" in run.page()


def test_a_run_in_which_the_law_erased_nothing_is_invalid() -> None:
    run = gt.ablate("toy-mixed", "ledger-h0", ["full"], law="window:900,1", limit=1, sampling={"max_new_tokens": 4})
    assert not run.valid and "no response is long enough for the law window:900,1" in run.failures[0]


@pytest.fixture
def windowed(tmp_path: Path) -> str:
    """Return a copy of a bundled checkpoint whose config records a law."""
    folder = tmp_path / "windowed"
    shutil.copytree(resolve_pretrained_path("toy-mixed"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["ghosttrace"]["law"] = LAW
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_a_checkpoint_records_its_law(windowed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gt.load(windowed).law.spec == LAW
    assert gt.load(windowed, law="sinks:1,9").law.spec == "sinks:1,9"
    memento = gt.load(windowed, law="memento")
    assert memento.law == gt.MementoLaw(memento.markup, memento.policy)
    assert memento.policy == gt.load("toy-mixed").policy
    cli.app(["info", windowed], standalone_mode=False)
    assert f"it records the law {LAW}" in " ".join(capsys.readouterr().out.split())


def test_the_leak_check_of_the_pipeline_refuses_other_laws(windowed: str) -> None:
    with pytest.raises(gt.UserError, match=rf"works with Memento's law only, and the model has the law {LAW}"):
        LeakCheck.load(windowed)


@pytest.mark.parametrize("law", ["tools:0", "tools:1"])
def test_swap_equals_memento_with_the_donor_result(law: str) -> None:
    """After the swap of one tool result, the cache equals that of a trace with the donor's result."""
    other_law = parse_law(law, CHAT)
    checkpoint = Checkpoint("llama", tiny("llama"), None, MARKUP, gt.Policy(False, -1), other_law=other_law)
    tokens = chat_trace(0)
    keys = [np.asarray(erasure.keys).tolist() for erasure in other_law.erasures(tokens)][1]
    donor, lengths = [TEXT + 50 + n for n in range(len(keys))], []

    def donors(key: tuple[int, ...], number: int, length: int) -> list[int] | None:
        lengths.append(length)
        return donor if (key, number) == ((1,), 1) else None

    replaced = [*tokens[: keys[0]], *donor, *tokens[keys[-1] + 1 :]]
    untouched, swapped = log2_probabilities(checkpoint, Swap(donors), [tokens, tokens])
    original, expected = log2_probabilities(checkpoint, Memento(), [tokens, replaced])
    end = other_law.erasures(tokens)[1].expires_at
    np.testing.assert_allclose(swapped[end:], expected[end:], atol=1e-4)
    np.testing.assert_allclose(untouched, original, atol=1e-4)
    assert np.abs(expected - original)[end:].max() > 1e-3 and len(lengths) == 2 * len(other_law.erasures(tokens))


@requires_data(NEEDED)
def test_ablate_swaps_the_number_that_is_asked_for() -> None:
    more = {"limit": 3, "sampling": {"max_new_tokens": 2}}
    run = gt.ablate(stock("tools:0"), "agent-erased", ["swap"], **more)  # type: ignore[arg-type]
    rows = run.samples.set_index("arm").loc["swap"]
    assert run.valid and rows["donor_answer"].notna().all() and (rows["donor_answer"] != rows["answer"]).all()
    with pytest.raises(gt.UserError, match="needs a benchmark that can write counterfactual blocks"):
        gt.ablate(stock("tools:0"), "agent-noted", ["swap"], limit=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "MODEL", "--bench", "ledger"], "plan works with Memento's law only"),
        (["serve", "--law", "log:LOG", "--backend", "hf"], "replays recorded tokens and cannot generate"),
        (["serve", "--law", "log:LOG", "--dry-run"], "replays recorded tokens and cannot generate"),
        (["serve", "--model", "MODEL", "--max-block-tokens", "9", "--dry-run"], "limits blocks, which the law"),
        (["serve", "--model", "MODEL", "--keep-last-n-blocks", "0", "--dry-run"], "leave out keep_last_n_blocks"),
        (["serve", "--law", "tools:0", "--dry-run"], "one without that role"),
        (["init-tokens", "MODEL", "OUT"], "init-tokens works with Memento's law only"),
        (["ablate", "--law", "turns:1,1", "--arms", "swap"], "swap acts on blocks and mementos"),
        (["ablate", "--law", "log:LOG"], "replays recorded tokens, and ablate generates"),
        (["bits", "--law", "tools:0"], "one without that role"),
        (["bits", "--law", "banana"], "there is no law 'banana'"),
        (["bits", "--law", LAW, "--keep-last-n-blocks", "0"], "leave out keep_last_n_blocks"),
        (
            ["bits", "--law", "window:900,1", "--limit", "1"],
            "no trace has text after an erasure of the law window:900,1",
        ),
        (["bits", "--law", "window:3,1", "--limit", "1"], "do not fit into the window"),
    ],
)
def test_commands_refuse_with_one_sentence(
    arguments: list[str], message: str, windowed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.jsonl").write_text('{"token_ids": [1, 2, 3], "evicted_at": [3, null, null]}')
    paths = {"MODEL": windowed, "OUT": str(tmp_path / "new"), "LOG": str(tmp_path / "log.jsonl")}
    for name, path in paths.items():
        arguments = [argument.replace(name, path) for argument in arguments]
    with pytest.raises(gt.UserError, match=message):
        cli.app(arguments, standalone_mode=False)


@requires_data("tokenizers/qwen3")
def test_a_stock_model_needs_no_delimiters(tmp_path: Path) -> None:
    """A model and a tokenizer that know nothing of Memento are measured on an eviction log."""
    folder = tmp_path / "stock"
    shutil.copytree(DATA / "tokenizers" / "qwen3", folder)
    config = FAMILIES["qwen3"]()
    config.vocab_size = 151_936
    type(tiny("qwen3"))(config).save_pretrained(folder)
    with pytest.raises(gt.UserError, match="the tokenizer has no"):
        gt.load(folder)
    checkpoint = gt.load(folder, law="turns:2,1")
    assert not checkpoint.markup.has_delimiters
    text = "One, two, three. " * 4
    (tmp_path / "trace.jsonl").write_text(json.dumps({"problem": "Count.", "response": text}))
    (trace,) = load_traces(checkpoint, tmp_path / "trace.jsonl")
    assert checkpoint.tokenizer.decode(trace.response) == text and len(checkpoint.law.erasures(trace.ids)) == 0
    tokens = checkpoint.tokenizer(text)["input_ids"]
    row = {"token_ids": tokens, "evicted_at": [None, 9, None, 9, *[None] * (len(tokens) - 4)]}
    (tmp_path / "log.jsonl").write_text(json.dumps(row))
    logged = gt.bits(folder, law=f"log:{tmp_path / 'log.jsonl'}")
    assert logged.valid and set(logged.results["source"]) == {"log.jsonl"}
    assert logged.samples.iloc[0]["token_index"][0] == 9
