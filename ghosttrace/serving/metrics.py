"""What erasure did, for Prometheus, beside vLLM's own metrics.

The scheduler counts in its own process; `ghosttrace serve` sets PROMETHEUS_MULTIPROC_DIR, so that the server's
`/metrics` collects what every process has counted.
"""

from prometheus_client import Counter, Gauge, Histogram

ERASED = Counter("ghosttrace:erased_tokens", "Keys that left the cache.")
FREED = Counter("ghosttrace:freed_pages", "Pages given back before their request was done.")
ALIVE = Gauge("ghosttrace:alive_tokens", "Keys held by running requests.", multiprocess_mode="livesum")
BLOCKS = Histogram("ghosttrace:request_blocks", "Finished blocks of a request.", buckets=(0, 1, 2, 4, 8, 16, 32, 64))
RATIO = Histogram(
    "ghosttrace:compression_ratio",
    "Tokens of a request over the keys held at its end.",
    buckets=(1, 1.25, 1.5, 2, 3, 4, 6, 8, 12, 16),
)


def finished(blocks: int, tokens: int, erased: int) -> None:
    """A request is done.

    Args:
        blocks: that it finished.
        tokens: of it that were read.
        erased: keys of these that are gone.
    """
    BLOCKS.observe(blocks)
    if tokens > erased:
        RATIO.observe(tokens / (tokens - erased))
