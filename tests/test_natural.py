"""Natural attributes: values that occur in blocks, and the tokens that show them."""

import pytest
from helpers.paths import DATA, requires_data
from helpers.text_traces import QWEN, TRACES, blocks_of, checkpoint_with_delimiters, trace
from hypothesis import given, settings
from hypothesis import strategies as st

from ghosttrace.data.spans import decode, token_range
from ghosttrace.data.tokens import load_traces
from ghosttrace.errors import UserError
from ghosttrace.probing.natural import attribute_finder, natural_task


@requires_data(QWEN, *TRACES)
def test_real_traces() -> None:
    checkpoint = checkpoint_with_delimiters("qwen")
    traces = load_traces(checkpoint, [str(DATA / name) for name in TRACES])
    task = natural_task(traces, checkpoint, "regex:(number|length|list)", hops=0, classes=2)
    assert len(task.samples) > 4


@pytest.mark.parametrize(
    "spec, text, label, shown",
    [
        ("last-number", "x_1 = 24, so 3.14 and 2x, 1,000.", "4", "24"),
        ("last-number", "So it is 107.", "7", "107"),
        ("last-number", "no numbers, x2", None, None),
        ("operation", "a + b * c + d - e", "+", "+"),
        ("operation", "well-known non-zero 3 \\times 4", "×", "\\times"),
        ("operation", "- item\n- \\(x\\) − 2", "-", "−"),
        ("operation", "\\frac{a}{b} and 2 + 3", "/", "\\frac"),
        ("operation", "2**3", None, None),
        ("regex:(\\w+) thing", "one thing, two thing", "one", "one"),
        ("regex:(z)?x", "x", None, None),
    ],
)
def test_attribute_finder(spec: str, text: str, label: str | None, shown: str | None) -> None:
    attribute = attribute_finder(spec)(text)
    assert (attribute and attribute.label) == label
    assert (attribute and text[attribute.span.start : attribute.span.stop]) == shown


def test_natural_task() -> None:
    checkpoint = checkpoint_with_delimiters("phi")
    blocks = [f"So {10 * i + i % 3} it is, and {i} + {i}." for i in range(12)]
    traces = [trace(checkpoint, f"t{number}", [*blocks, "no number here"]) for number in range(2)]
    task = natural_task(traces, checkpoint, "regex:So (\\d+) it", hops=2, classes=11)
    assert len(task.samples) == 20 and {sample.base for sample in task.samples} == {"t0", "t1"}
    for sample in task.samples:
        spelled = decode(checkpoint.tokenizer, [sample.ids[index] for index in sample.secret_indices])
        assert spelled == task.targets[0].classes[sample.labels[0]]
        assert len(blocks_of(checkpoint, sample.ids)) == sample.block + 3
    few = natural_task(traces, checkpoint, "last-number", hops=0, classes=2)
    assert len(few.targets[0].classes) == 2 and {sample.labels[0] for sample in few.samples} == {0, 1}
    with pytest.raises(UserError, match="no block with 20 more after it"):
        natural_task(traces, checkpoint, "last-number", hops=20)
    for spec, message in (("regex:(", "no regular"), ("regex:x", "no group"), ("size", "no attribute")):
        with pytest.raises(UserError, match=message):
            natural_task(traces, checkpoint, spec)
    with pytest.raises(UserError, match="in one sample alone"):
        natural_task(traces[:1], checkpoint, "last-number", hops=0)


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("ab1é🙂漢 "), min_size=1, max_size=20), st.data())
def test_spelling_agrees_with_offsets(text: str, data: st.DataObject) -> None:
    tokenizer = checkpoint_with_delimiters("phi").tokenizer
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    start = data.draw(st.integers(0, len(text) - 1))
    stop = data.draw(st.integers(start + 1, len(text)))
    offsets = enumerate(encoded["offset_mapping"])
    expected = [index for index, (a, b) in offsets if a < stop and b > start]
    indices = list(token_range(encoded["input_ids"], range(start, stop), tokenizer))
    assert set(indices) <= set(expected)
    assert text[start:stop] in decode(tokenizer, [encoded["input_ids"][index] for index in expected])
    if text.isascii():
        assert indices == expected
