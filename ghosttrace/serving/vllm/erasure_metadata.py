"""What a step's `SchedulerOutput` carries from the scheduler to the workers."""

from dataclasses import dataclass, field

from ghosttrace.serving.paging import Compaction


@dataclass(frozen=True)
class ErasureMetadata:
    """Erasure in one step of the engine; every mapping is by request id.

    Attributes:
        compactions: copies to carry out before anything is computed, in order.
        erased: number of erased keys: a token at position p is held in slot p - erased.
        renumbered: requests whose positions are closed up as well.
        jumps: for requests that go on elsewhere, the position to compute next and the number of known tokens.
    """

    compactions: dict[str, list[Compaction]] = field(default_factory=dict)
    erased: dict[str, int] = field(default_factory=dict)
    renumbered: frozenset[str] = frozenset()
    jumps: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def from_scheduler_output(cls, scheduler_output: object) -> "ErasureMetadata":
        """Return the orders of a `SchedulerOutput`; vLLM's own outputs, such as those of warm-up, carry none."""
        orders: ErasureMetadata = getattr(scheduler_output, "ghosttrace", cls())
        return orders
