"""Erasure data that the scheduler attaches to a step's `SchedulerOutput` for the workers."""

from dataclasses import dataclass, field

from ghosttrace.serving.paging import Compaction


@dataclass(frozen=True)
class ErasureMetadata:
    """Erasures in one step of the engine; all mappings are by request id.

    Attributes:
        compactions: compactions to apply in order before the step is computed.
        erased: number of erased keys; the token at index i is stored in slot i - erased.
        renumbered: ids of requests whose positions are renumbered to their slots.
        jumps: (index of the next token to compute, number of known tokens) of requests that do not continue at the
            next token.
    """

    compactions: dict[str, list[Compaction]] = field(default_factory=dict)
    erased: dict[str, int] = field(default_factory=dict)
    renumbered: frozenset[str] = frozenset()
    jumps: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def from_scheduler_output(cls, scheduler_output: object) -> "ErasureMetadata":
        """Return the metadata of a `SchedulerOutput`; empty for outputs of vLLM itself, such as during warm-up."""
        metadata: ErasureMetadata = getattr(scheduler_output, "ghosttrace", cls())
        return metadata
