"""Hypothesis strategies for arbitrary token streams and policies."""

from hypothesis import strategies as st

from ghosttrace.law.expiry import ERASE_AT, Policy
from ghosttrace.law.markup import Markup

BS, BE, SS, SE, HEAD_A, HEAD_B, END = range(1, 8)
MARKUP = Markup(BS, BE, SS, SE, assistant_header=(HEAD_A, HEAD_B), turn_end=END)
NO_HEADER_POLICY = Policy(mask_delimiters=True, require_assistant_section=False)

pair = st.lists(st.integers(8, 10), max_size=3).flatmap(
    lambda text: st.lists(st.integers(8, 10), max_size=2).map(lambda memento: [BS, *text, BE, SS, *memento, SE])
)
piece = st.one_of(pair, st.just([HEAD_A, HEAD_B]), st.just([END]), st.lists(st.integers(0, 10), max_size=4))
streams = st.lists(piece, max_size=12).map(lambda pieces: [token for p in pieces for token in p])
policies = st.builds(
    Policy,
    mask_delimiters=st.booleans(),
    keep_last_n_blocks=st.integers(-1, 3),
    erase_at=st.sampled_from(ERASE_AT),
    keep_last_block_for_answer=st.booleans(),
    require_assistant_section=st.booleans(),
)
