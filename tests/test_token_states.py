"""`gt.features`: each row is the state of the token named in the index."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers.families import tiny
from helpers.laws import CHAT, TOOL_TURNS, chat_trace
from helpers.traces import MARKUP, trace

import ghosttrace as gt
from ghosttrace.ablation.arms import Memento, Restart
from ghosttrace.bench import load_bench
from ghosttrace.bench.reference_traces import reference_traces
from ghosttrace.data.tokens import TokenTrace
from ghosttrace.errors import UserError
from ghosttrace.law.chat import Chat
from ghosttrace.law.expiry import NEVER, Policy, expiry
from ghosttrace.law.layout import open_layout, sealed_layout
from ghosttrace.law.markup import find_blocks
from ghosttrace.law.parse import parse_law
from ghosttrace.model.attention import attending
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.session import Session
from ghosttrace.model.states import read_states

LAYOUTS = {"open": open_layout, "sealed": sealed_layout}
ARMS = {"open": Memento(), "sealed": Restart()}
LENGTHS = (3, 5, 2, 4)  # in blocks


def tiny_checkpoint(family: str, masked: bool = False) -> Checkpoint:
    return Checkpoint(family, tiny(family), gt.load("toy-open").tokenizer, MARKUP, Policy(masked))


def traces() -> list[TokenTrace]:
    return [TokenTrace("random", f"t{n}", ids[:3], ids[3:]) for n, ids in enumerate(map(trace, range(4), LENGTHS))]


@pytest.mark.parametrize("cache", ["open", "sealed"])
@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_rows_are_the_states_of_their_tokens(family: str, cache: str) -> None:
    """Rows equal states read from one trace alone, and the cache of a session (`restart` for sealed rows)."""
    checkpoint, all_traces = tiny_checkpoint(family), traces()
    table = gt.features(
        checkpoint, all_traces, layers=[3, 1], carriers=("memento", "delimiters"), cache=cache, batch_tokens=120
    )  # type: ignore[arg-type]
    assert table.keys is not None and table.values is not None and table.layers == (1, 3)
    assert table.keys.dtype == np.float32 and table.keys.shape[:3] == (len(table.index), 2, 2)
    assert list(dict.fromkeys(table.index["trace"])) == ["t0", "t1", "t2", "t3"]
    for item in all_traces:
        rows = (table.index["trace"] == item.name).to_numpy()
        indices = table.index.loc[rows, "token_index"].to_numpy()
        expected_states = read_states(
            checkpoint.model, [LAYOUTS[cache](item.ids, MARKUP, checkpoint.policy)], [indices]
        )
        arm = ARMS[cache]
        with attending(checkpoint.model):
            session = Session(checkpoint.model, MARKUP, arm.adapt_policy(checkpoint.policy), [(0,)], arm.eraser)
            session.advance([item.ids])
        held = np.searchsorted(session.cache.held_indices(0), indices)
        for kind, actual, expected in (
            ("keys", table.keys, expected_states.keys),
            ("values", table.values, expected_states.values),
        ):
            np.testing.assert_allclose(actual[rows], expected[[1, 3], 0].permute(2, 0, 1, 3).numpy(), atol=1e-5)
            session_states = np.stack([getattr(session.cache.layers[n], kind)[0, :, held].numpy() for n in (1, 3)])
            np.testing.assert_allclose(actual[rows], session_states.transpose(2, 0, 1, 3), atol=1e-5)


def chats() -> list[TokenTrace]:
    return [TokenTrace("random", f"t{seed}", [], chat_trace(seed)) for seed in range(3)]


def under(law: str, chat: Chat) -> Checkpoint:
    checkpoint = replace(tiny_checkpoint("llama"), other_law=parse_law(law, chat))
    vars(checkpoint)["chat"] = chat  # in place of that of the tokenizer
    return checkpoint


@pytest.mark.parametrize("cache", ["open", "sealed"])
@pytest.mark.parametrize(
    ("law", "chat"),
    [("tools:0", TOOL_TURNS), ("turns:2,1", CHAT), ("window:24,5,prompt=3", CHAT), ("window:24,5,prompt=3", Chat())],
)
def test_rows_under_other_laws(law: str, chat: Chat, cache: str) -> None:
    """Every retained token once, in its turn, with the state that a session holds."""
    checkpoint, arm = under(law, chat), ARMS[cache]
    table = gt.features(checkpoint, chats(), kv="v", layers=[3], cache=cache)  # type: ignore[arg-type]
    assert table.values is not None
    for item in chats():
        rows = (table.index["trace"] == item.name).to_numpy()
        index = table.index[rows].set_index("token_index")
        with attending(checkpoint.model):
            session = Session(checkpoint.model, MARKUP, checkpoint.policy, [(0,)], arm.eraser, checkpoint.law)
            session.advance([item.ids])
        held = session.cache.held_indices(0).tolist()
        assert index.index.tolist() == held and len(held) < len(item.ids)
        in_session = session.cache.layers[3].values[0, :, : len(held)].transpose(0, 1).numpy()
        np.testing.assert_allclose(table.values[rows][:, 0], in_session, atol=1e-4)
        starts = [k for k, token in enumerate(item.ids) if token in chat.turn_starts]
        for k in held:
            assert index.loc[k, "block"] == max(sum(start <= k for start in starts) - 1, 0)
            special = {*chat.turn_starts, chat.turn_end, chat.tool_close, *chat.tool_open[:1]}
            assert index.loc[k, "carrier"] == ("delimiters" if item.ids[k] in special else "turn")
    only = gt.features(checkpoint, chats(), kv="v", layers=[3], carriers=["turn"]).index
    assert only.equals(table.index[table.index["carrier"] == "turn"].reset_index(drop=True))


def test_sealed_rows_differ_where_a_block_was_seen() -> None:
    """Positive control of the test above."""
    opened, sealed = (gt.features(tiny_checkpoint("qwen3"), traces(), kv="v", layers=[0, 3], cache=c) for c in LAYOUTS)  # type: ignore[arg-type]
    assert opened.keys is None and opened.values is not None and sealed.values is not None
    apart = np.abs(opened.values - sealed.values).max(axis=(2, 3))
    assert apart[:, 0].max() < 1e-6 < 1e-2 < apart[:, 1].min()  # first-layer values depend on the token alone


def test_index_lists_every_retained_token_of_every_pair() -> None:
    checkpoint, all_traces = tiny_checkpoint("llama"), traces()
    index = gt.features(checkpoint, all_traces, kv="k", layers=[0], carriers=("delimiters", "memento")).index
    assert index.columns.tolist() == ["source", "trace", "block", "carrier", "token_index", "token_id", "text"]
    for item in all_traces:
        rows = index[index["trace"] == item.name]
        for number, block in enumerate(find_blocks(item.ids, MARKUP)):
            block_rows = rows[rows["block"] == number]
            memento = list(range(block.memento_start, block.memento_end + 1))
            assert block_rows.loc[block_rows["carrier"] == "memento", "token_index"].tolist() == memento
            assert block_rows.loc[block_rows["carrier"] == "delimiters", "token_index"].tolist() == [
                block.start,
                block.end,
            ]
        assert rows["token_index"].is_monotonic_increasing
        assert rows["token_id"].tolist() == [item.ids[token_index] for token_index in rows["token_index"]]
        times = expiry(item.ids, MARKUP, checkpoint.policy)
        assert (times[rows["token_index"]] == NEVER).all()


def test_index_of_a_bundled_model_has_token_texts() -> None:
    toy = gt.load("toy-open")
    (bench,) = load_bench("ledger-h1", 2)
    table = gt.features(toy, reference_traces(toy, bench), layers=[2])
    first: pd.DataFrame = table.index[(table.index["trace"] == bench.problems[0].id) & (table.index["block"] == 0)]
    text = first["text"].tolist()
    assert (text[0], text[3], text[4]) == ("<|summary_start|>", "*", "<|summary_end|>")
    assert len(table.index) == 2 * 4 * 5 and set(table.index["source"]) == {"ledger-h1"}


def test_invalid_input_is_refused() -> None:
    checkpoint, all_traces = tiny_checkpoint("llama"), traces()
    erased = tiny_checkpoint("llama", masked=True)
    without_blocks = TokenTrace("file", "0", [1, 9, 3], [10, 11])
    cases = {
        "carriers must be from memento, delimiters": lambda: gt.features(checkpoint, all_traces, carriers=("block",)),  # type: ignore[arg-type]
        "carriers must be from delimiters, turn under the law sinks:2,9": lambda: gt.features(
            checkpoint, all_traces, carriers=("memento",), law="sinks:2,9"
        ),
        "no trace retains a token of delimiters": lambda: gt.features(
            under("window:24,5,prompt=3", Chat()), chats(), carriers=("delimiters",)
        ),
        "kv must be k, v or kv": lambda: gt.features(checkpoint, all_traces, kv="hidden"),  # type: ignore[arg-type]
        "cache must be open or sealed": lambda: gt.features(checkpoint, all_traces, cache="restart"),  # type: ignore[arg-type]
        "batch_tokens must be at least 1": lambda: gt.features(checkpoint, all_traces, batch_tokens=0),
        "layer 4 is out of range": lambda: gt.features(checkpoint, all_traces, layers=[4]),
        "this policy erases delimiters": lambda: gt.features(erased, all_traces, carriers=("delimiters",)),
        "no trace has a finished block": lambda: gt.features(checkpoint, [without_blocks]),
    }
    for message, call in cases.items():
        with pytest.raises(UserError, match=message):
            call()
    assert set(gt.features(checkpoint, [without_blocks, *all_traces]).index["trace"]) == {"t0", "t1", "t2", "t3"}
