"""The arrays for probes of one's own: each row is the state of the token that the index names."""

import numpy as np
import pandas as pd
import pytest
from helpers.families import tiny
from helpers.traces import MARKUP, trace

import ghosttrace as gt
from ghosttrace.ablation.arms import Memento, Restart
from ghosttrace.bench import load_bench
from ghosttrace.bench.reference_traces import reference_traces
from ghosttrace.data.tokens import TokenTrace
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import NEVER, Policy, expiry
from ghosttrace.law.layout import open_layout, sealed_layout
from ghosttrace.law.markup import find_blocks
from ghosttrace.model.attention import attending
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.session import Session
from ghosttrace.model.states import read_states

LAYOUTS = {"open": open_layout, "sealed": sealed_layout}
ARMS = {"open": Memento(), "sealed": Restart()}
LENGTHS = (3, 5, 2, 4)  # in blocks


def checkpoint(family: str, masked: bool = False) -> Checkpoint:
    return Checkpoint(family, tiny(family), gt.load("toy-open").tokenizer, MARKUP, Policy(masked))


def traces() -> list[TokenTrace]:
    return [TokenTrace("random", f"t{n}", ids[:3], ids[3:]) for n, ids in enumerate(map(trace, range(4), LENGTHS))]


@pytest.mark.parametrize("cache", ["open", "sealed"])
@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_a_row_is_the_state_of_its_token(family: str, cache: str) -> None:
    """As one trace alone is read, and as a session leaves it: sealed rows are what `restart` leaves."""
    at, some = checkpoint(family), traces()
    table = gt.features(at, some, layers=[3, 1], carriers=("memento", "delimiters"), cache=cache, batch_tokens=120)  # type: ignore[arg-type]
    assert table.keys is not None and table.values is not None and table.layers == (1, 3)
    assert table.keys.dtype == np.float32 and table.keys.shape[:3] == (len(table.index), 2, 2)
    assert list(dict.fromkeys(table.index["trace"])) == ["t0", "t1", "t2", "t3"]
    for one in some:
        rows = (table.index["trace"] == one.name).to_numpy()
        places = table.index.loc[rows, "position"].to_numpy()
        alone = read_states(at.model, [LAYOUTS[cache](one.ids, MARKUP, at.policy)], [places])
        arm = ARMS[cache]
        with attending(at.model):
            session = Session(at.model, MARKUP, arm.adapt_policy(at.policy), [(0,)], arm.eraser)
            session.advance([one.ids])
        held = np.searchsorted(session.cache.held_indices(0), places)
        for kind, found, expected in (("keys", table.keys, alone.keys), ("values", table.values, alone.values)):
            np.testing.assert_allclose(found[rows], expected[[1, 3], 0].permute(2, 0, 1, 3).numpy(), atol=1e-5)
            left = np.stack([getattr(session.cache.layers[n], kind)[0, :, held].numpy() for n in (1, 3)])
            np.testing.assert_allclose(found[rows], left.transpose(2, 0, 1, 3), atol=1e-5)


def test_sealed_rows_differ_where_a_block_was_seen() -> None:
    """The comparison above could fail."""
    opened, sealed = (gt.features(checkpoint("qwen3"), traces(), kv="v", layers=[0, 3], cache=c) for c in LAYOUTS)  # type: ignore[arg-type]
    assert opened.keys is None and opened.values is not None and sealed.values is not None
    apart = np.abs(opened.values - sealed.values).max(axis=(2, 3))
    assert apart[:, 0].max() < 1e-6 < 1e-2 < apart[:, 1].min()  # the first layer's values have not attended yet


def test_the_index_names_every_retained_token_of_every_pair() -> None:
    at, some = checkpoint("llama"), traces()
    index = gt.features(at, some, kv="k", layers=[0], carriers=("delimiters", "memento")).index
    assert index.columns.tolist() == ["source", "trace", "block", "carrier", "position", "token_id", "text"]
    for one in some:
        rows = index[index["trace"] == one.name]
        for number, block in enumerate(find_blocks(one.ids, MARKUP)):
            here = rows[rows["block"] == number]
            memento = list(range(block.memento_start, block.memento_end + 1))
            assert here.loc[here["carrier"] == "memento", "position"].tolist() == memento
            assert here.loc[here["carrier"] == "delimiters", "position"].tolist() == [block.start, block.end]
        assert rows["position"].is_monotonic_increasing
        assert rows["token_id"].tolist() == [one.ids[place] for place in rows["position"]]
        times = expiry(one.ids, MARKUP, at.policy)
        assert (times[rows["position"]] == NEVER).all()


def test_traces_of_a_bundled_model_read_as_text() -> None:
    toy = gt.load("toy-open")
    (bench,) = load_bench("ledger-h1", 2)
    table = gt.features(toy, reference_traces(toy, bench), layers=[2])
    first: pd.DataFrame = table.index[(table.index["trace"] == bench.problems[0].id) & (table.index["block"] == 0)]
    text = first["text"].tolist()
    assert (text[0], text[3], text[4]) == ("<|summary_start|>", "*", "<|summary_end|>")
    assert len(table.index) == 2 * 4 * 5 and set(table.index["source"]) == {"ledger-h1"}


def test_bad_input_is_refused_in_a_sentence() -> None:
    at, some = checkpoint("llama"), traces()
    erased = checkpoint("llama", masked=True)
    plain = TokenTrace("file", "0", [1, 9, 3], [10, 11])
    cases = {
        "carriers are of memento, delimiters": lambda: gt.features(at, some, carriers=("block",)),  # type: ignore[arg-type]
        "kv is k, v or kv": lambda: gt.features(at, some, kv="hidden"),  # type: ignore[arg-type]
        "cache is open or sealed": lambda: gt.features(at, some, cache="restart"),  # type: ignore[arg-type]
        "batch_tokens are at least 1": lambda: gt.features(at, some, batch_tokens=0),
        "layer 4 is out of range": lambda: gt.features(at, some, layers=[4]),
        "this policy erases delimiters": lambda: gt.features(erased, some, carriers=("delimiters",)),
        "no trace has a finished block": lambda: gt.features(at, [plain]),
    }
    for said, call in cases.items():
        with pytest.raises(UserError, match=said):
            call()
    assert set(gt.features(at, [plain, *some]).index["trace"]) == {"t0", "t1", "t2", "t3"}
