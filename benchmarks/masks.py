"""Cost of expiry and block mask relative to a forward pass: `python benchmarks/masks.py`.

Builds expiry and block mask for a batch of 8 sequences of 32,768 tokens and compares the time with a forward pass of
the mid-size model of `decoding.py`. A forward pass of the whole batch would take many minutes on a CPU, so one sequence
is run with stock transformers and its time is multiplied by eight. The script also reports the size in bytes: the
block mask is O(T + (T / 128)^2), a dense mask O(T^2).
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from decoding import SIZES, make_model

from ghosttrace.law.expiry import Policy, expiry
from ghosttrace.law.markup import Markup
from ghosttrace.law.masks import Visibility, block_mask

ROWS, LENGTH = 8, 32_768
MARKUP = Markup(4, 5, 6, 7, assistant_header=(3,))


def sequences() -> np.ndarray:
    """Return random sequences, int64[8, 32768], with the mean block and memento lengths of the paper (section 4)."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(ROWS):
        tokens = [1, 3]
        while len(tokens) < LENGTH:
            block, memento = (rng.integers(8, 32_000, int(rng.normal(n, n / 5))).tolist() for n in (1150, 194))
            tokens += [4, *block, 5, 6, *memento, 7]
        rows.append(tokens[:LENGTH])
    return np.array(rows)


def main() -> None:
    """Measure both times and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "masks.json")
    chosen = parser.parse_args()
    tokens, policy = sequences(), Policy(mask_delimiters=False)
    times: dict[str, list[float]] = {"expiry": [], "block_mask": []}
    for _ in range(5):
        started = time.perf_counter()
        expiries = np.stack([expiry(row, MARKUP, policy) for row in tokens])
        times["expiry"].append(time.perf_counter() - started)
        started = time.perf_counter()
        index = torch.arange(LENGTH).expand(ROWS, -1)
        mask = block_mask(Visibility(index, index, torch.from_numpy(expiries), index, index))
        times["block_mask"].append(time.perf_counter() - started)
    model = make_model(SIZES["mid"], "cpu", torch.float32)
    with torch.no_grad():
        started = time.perf_counter()
        model(input_ids=torch.from_numpy(tokens[:1]), use_cache=False, logits_to_keep=1)
        forward = time.perf_counter() - started
    total = sum(float(np.median(part)) for part in times.values())
    record = {
        "rows": ROWS,
        "length": LENGTH,
        "median_seconds": {name: float(np.median(part)) for name, part in times.items()},
        "forward_seconds_one_row": forward,
        "share_of_forward": total / (ROWS * forward),
        "visible_tiles": float(100 - mask.sparsity()) / 100,
        "block_mask_bytes": sum(
            t.nbytes
            for t in (mask.kv_num_blocks, mask.kv_indices, mask.full_kv_num_blocks, mask.full_kv_indices)
            if t is not None
        ),
        "dense_mask_bytes": ROWS * LENGTH * LENGTH,
    }
    print(json.dumps(record, indent=1))
    chosen.out.parent.mkdir(exist_ok=True)
    chosen.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
