"""Sites: the parts of a retained cache that are patched, each in every layer, by keys, by values and by both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ghosttrace.law.expiry import MementoLaw, expiry
from ghosttrace.law.markup import find_blocks
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.patching.cases import PatchCase

ALL = -1
"""Value of `PatchSite.offset` or `PatchSite.layer` that selects all tokens of the carrier, or all layers."""


@dataclass(frozen=True, order=True)
class PatchSite:
    """A part of the retained cache that is patched together.

    Attributes:
        carrier: under Memento's law `memento` or `delimiters` of the patched block; or `other`, the text between the
            block and its memento. Under another law `carriers`, all retained tokens that could see what left; or
            `delimiters`, those among them that open or close a turn or a tool result, which are not part of the runs of
            `carriers`. Under all laws `earlier`, the tokens before these that are retained from the first token on that
            has left, or from the first block on; `prompt`, the tokens before that; `everything`, all retained tokens;
            or `placebo`, all retained tokens, with states from a pass that differs in nothing.
        offset: index of a token, or of a run of tokens, within the carrier; `ALL` for the whole carrier.
        layer: layer index, or `ALL`.
        kv: `k` (keys), `v` (values) or `kv` (both).
    """

    carrier: str
    offset: int = ALL
    layer: int = ALL
    kv: str = "kv"


CarrierIndices = dict[tuple[str, int], np.ndarray]
"""Token indices in the trace, int64[n] ascending, by (carrier, offset) of a `PatchSite`."""


class Carrier(NamedTuple):
    """A carrier of one case.

    Attributes:
        name: see `PatchSite`.
        tokens: int64[n], its token indices.
        parts: token indices of the parts that are patched alone as well.
        text: index in `parts` of the text that is divided into runs; None if there is none.
    """

    name: str
    tokens: np.ndarray
    parts: tuple[np.ndarray, ...] = ()
    text: int | None = None


def find_carriers(case: PatchCase, checkpoint: Checkpoint) -> list[Carrier]:
    """Return the carriers of a case. Some may have no tokens.

    Args:
        case: the trace and its erasure.
        checkpoint: provides the law, which determines the retained tokens.
    """
    law, prefix = checkpoint.law, case.ids(False)[: case.prefix_end]
    times = expiry(prefix, law)
    retained = np.flatnonzero(times > len(prefix))
    if isinstance(law, MementoLaw):
        blocks = find_blocks(prefix, law.markup, law.policy.require_assistant_section)
        first, block = blocks[0].start, blocks[case.block_index]
        carriers_start, memento = block.start, np.arange(block.memento_start, block.memento_end + 1)
        delimiters = retained[np.isin(retained, (block.start, block.end))]
        own = [
            Carrier("other", retained[(retained > block.end) & (retained < block.memento_start)]),
            Carrier("delimiters", delimiters, _single(delimiters)),
            Carrier("memento", memento, (memento[:1], memento[1:-1], memento[-1:]), 1),
        ]
    else:
        first, carriers_start = int(np.flatnonzero(times <= len(prefix)).min()), case.content.start
        carriers = retained[retained >= carriers_start]
        is_delimiter = np.isin(np.array(prefix)[carriers], checkpoint.chat.delimiters)
        delimiters = carriers[is_delimiter]
        own = [
            Carrier("delimiters", delimiters, _single(delimiters)),
            Carrier("carriers", carriers, (carriers[~is_delimiter],), 0),
        ]
    return [
        Carrier("placebo", retained),
        Carrier("prompt", retained[retained < first]),
        Carrier("everything", retained),
        Carrier("earlier", retained[(retained >= first) & (retained < carriers_start)]),
        *own,
    ]


def _single(tokens: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(tokens[[number]] for number in range(len(tokens)))


def carrier_token_indices(case: PatchCase, checkpoint: Checkpoint, n_runs: int) -> CarrierIndices:
    """Return the token indices of each carrier, as a whole and part by part.

    Args:
        case: the trace and its erasure.
        checkpoint: provides the law, which determines the retained tokens.
        n_runs: number of runs into which the text of the memento, or of the carriers, is divided; at most its number of
            tokens.

    Returns:
        Token indices by (carrier, offset). Carriers without tokens in this trace are omitted.
    """
    indices: CarrierIndices = {}
    for carrier in find_carriers(case, checkpoint):
        parts: list[np.ndarray] = []
        for number, part in enumerate(carrier.parts):
            runs = np.array_split(part, n_runs) if n_runs else []
            parts += runs if number == carrier.text else [part]
        indices |= {(carrier.name, ALL): carrier.tokens} | {(carrier.name, n): part for n, part in enumerate(parts)}
    return {key: tokens for key, tokens in indices.items() if len(tokens)}


def all_sites(carrier_indices: CarrierIndices, n_layers: int) -> list[PatchSite]:
    """Return every site: each carrier and offset, in each layer and in all, by keys, by values and by both.

    The controls `placebo` and `prompt` have one site each, the whole carrier in all layers.

    Args:
        carrier_indices: token indices by (carrier, offset); only the keys are used.
        n_layers: number of layers of the model.
    """
    sites = []
    for carrier, offset in carrier_indices:
        is_control = carrier in ("placebo", "prompt")
        for layer in (ALL,) if is_control else (ALL, *range(n_layers)):
            sites += [PatchSite(carrier, offset, layer, kv) for kv in (("kv",) if is_control else ("k", "v", "kv"))]
    return sites


def count_runs(cases: Sequence[PatchCase], checkpoint: Checkpoint, maximum: int) -> Mapping[tuple[str, int], int]:
    """Return by group the number of runs into which the text of its mementos, or of its carriers, is divided.

    This is the number of tokens of the shortest such text in the group, at most `maximum`, so that all its cases have
    the same runs.
    """
    lengths: dict[tuple[str, int], int] = {}
    for case in cases:
        carriers = find_carriers(case, checkpoint)
        length = next(len(carrier.parts[carrier.text]) for carrier in carriers if carrier.text is not None)
        lengths[case.group] = min(lengths.get(case.group, maximum), length)
    return lengths
