"""Prometheus metrics of erasure, which appear beside vLLM's own.

The scheduler counts in its own process. `ghosttrace serve` sets PROMETHEUS_MULTIPROC_DIR, so that the server's
`/metrics` adds up what every process has counted.
"""

from prometheus_client import Counter, Gauge, Histogram

ERASED_TOKENS = Counter("ghosttrace:erased_tokens", "Keys that left the cache.")
FREED_PAGES = Counter("ghosttrace:freed_pages", "Pages given back before their request was done.")
ALIVE_TOKENS = Gauge("ghosttrace:alive_tokens", "Keys held by running requests.", multiprocess_mode="livesum")
REQUEST_BLOCKS = Histogram(
    "ghosttrace:request_blocks", "Finished blocks of a request.", buckets=(0, 1, 2, 4, 8, 16, 32, 64)
)
COMPRESSION_RATIO = Histogram(
    "ghosttrace:compression_ratio",
    "Tokens of a request over the keys held at its end.",
    buckets=(1, 1.25, 1.5, 2, 3, 4, 6, 8, 12, 16),
)


def count_finished(blocks: int, tokens: int, erased: int) -> None:
    """Count a request that has ended.

    Args:
        blocks: blocks that it finished.
        tokens: tokens of it that were computed.
        erased: keys of these tokens that were erased.
    """
    REQUEST_BLOCKS.observe(blocks)
    if tokens > erased:
        COMPRESSION_RATIO.observe(tokens / (tokens - erased))
