"""`--seal-check`: ghost bits of each block tell mementos that omit what is used from complete ones."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.annotator import annotate, stage_of
from helpers.pipeline import SMALL, endpoint_of, seed, seed_file
from helpers.scripted_endpoint import scripted_endpoint

import ghosttrace as gt
from ghosttrace.bench import as_benches
from ghosttrace.bench.reference_traces import reference_traces
from ghosttrace.pipeline import leak_check as leak_check_module
from ghosttrace.pipeline.assembly import response
from ghosttrace.pipeline.check_response import parse_response
from ghosttrace.pipeline.leak_check import LeakCheck
from ghosttrace.pipeline.rows import Memento, Row, RowError
from ghosttrace.pipeline.run import build


@pytest.fixture(scope="module")
def leak_check() -> Iterator[LeakCheck]:
    """Yield a check with a toy, whose traces have no line ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leak_check_module, "response", lambda *given: response(*given).replace("\n", ""))
        yield LeakCheck.load("toy-mixed")


def ledger_row(check: LeakCheck, bench: str) -> Row:
    """Return a trace of a benchmark, with its mementos, as a row."""
    (trace,) = reference_traces(check.checkpoint, *as_benches(bench, 1, 0))
    decode = check.checkpoint.tokenizer.decode
    pairs = parse_response(decode(trace.response))
    prompt = decode(trace.prompt).removeprefix("<|user|>").removesuffix("<|assistant|>")
    blocks = tuple(pair.block for pair in pairs)
    return Row(
        bench, prompt, "".join(blocks), decode(trace.response).rpartition("</think>")[2], sentences=blocks,
        sentence_tokens=(16,) * len(blocks), blocks=tuple((n, n) for n in range(len(blocks))),
        mementos=tuple(Memento(pair.memento, 3) for pair in pairs),
    )  # fmt: skip


def test_omitted_values_cost_bits_and_complete_mementos_none(leak_check: LeakCheck) -> None:
    omitted = leak_check.measure(ledger_row(leak_check, "ledger-h3"))
    complete = leak_check.measure(ledger_row(leak_check, "ledger-h0"))
    assert len(omitted.ghost_bits) == len(omitted.blocks) == 4
    assert max(omitted.ghost_bits) > 0.5 > 10 * max(map(abs, complete.ghost_bits))


def test_equal_to_the_bits_of_the_same_trace(leak_check: LeakCheck) -> None:
    row = ledger_row(leak_check, "ledger-h3")
    (trace,) = reference_traces(leak_check.checkpoint, *as_benches("ledger-h3", 1, 0))
    samples = gt.bits(leak_check.checkpoint, [trace], arms=["restart"]).samples
    (sample,) = samples[samples["arm"] == "restart"].to_dict("records")
    gained = np.subtract(sample["log2p_memento"], sample["log2p_arm"])
    last = gained[np.asarray(sample["block"]) == 4]
    assert leak_check.measure(row).ghost_bits[3] == pytest.approx(last.mean(), abs=1e-6)


def test_a_row_without_mementos_cannot_be_measured(leak_check: LeakCheck) -> None:
    with pytest.raises(RowError, match="run ghosttrace data compress first"):
        leak_check.measure(Row("a", "p", "t", "4", sentences=("t",), blocks=((0, 0),), mementos=(None,)))


def test_the_judge_hears_of_it_and_the_row_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from helpers.text_traces import checkpoint_with_delimiters, with_random_model

    random_model = LeakCheck(with_random_model(checkpoint_with_delimiters("phi")))
    monkeypatch.setattr(LeakCheck, "load", classmethod(lambda cls, name: random_model))
    judged: list[str] = []

    def respond(body: dict[str, object]) -> str:
        if stage_of(body) == "judge":
            judged.append(body["messages"][1]["content"])  # type: ignore[index]
        return annotate(body)

    with scripted_endpoint(respond) as server:
        source = seed_file(tmp_path, seed("one", 12))
        result = build(source, tmp_path / "out", endpoint_of(server), SMALL, seal_check="random")
    rows = [*result.rows()["ghost_bits"], *result.rows("rejected")["ghost_bits"]]
    assert len(rows) == 1 and len(rows[0]) >= 1 and np.isfinite(rows[0]).all()
    assert judged and all("bits a token" in message for message in judged)
