"""What the law costs beside a forward pass: `python benchmarks/masks.py`.

Builds expiry and masks for a batch of 8 sequences of 32,768 tokens and compares that with one forward
pass of the mid-size model of `decoding.py`. The forward pass of the whole batch would take a CPU many
minutes: one sequence is run, through stock transformers, and counts eight times. Beside the ratio
stand the bytes: the block mask is O(T + (T / 128)^2), a dense one would be T^2.
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
    """int64[8, 32768]: blocks of about 1,150 tokens, mementos of about 194 (paper, section 4)."""
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
    """Time both and record the share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "masks.json")
    chosen = parser.parse_args()
    tokens, policy = sequences(), Policy(mask_delimiters=False)
    times: dict[str, list[float]] = {"expiry": [], "block_mask": []}
    for _ in range(5):
        begun = time.perf_counter()
        laws = np.stack([expiry(row, MARKUP, policy) for row in tokens])
        times["expiry"].append(time.perf_counter() - begun)
        begun = time.perf_counter()
        index = torch.arange(LENGTH).expand(ROWS, -1)
        mask = block_mask(Visibility(index, index, torch.from_numpy(laws), index, index))
        times["block_mask"].append(time.perf_counter() - begun)
    model = make_model(SIZES["mid"], "cpu", torch.float32)
    with torch.no_grad():
        begun = time.perf_counter()
        model(input_ids=torch.from_numpy(tokens[:1]), use_cache=False, logits_to_keep=1)
        forward = time.perf_counter() - begun
    law = sum(float(np.median(part)) for part in times.values())
    record = {
        "rows": ROWS,
        "length": LENGTH,
        "median_seconds": {name: float(np.median(part)) for name, part in times.items()},
        "forward_seconds_one_row": forward,
        "share_of_forward": law / (ROWS * forward),
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
