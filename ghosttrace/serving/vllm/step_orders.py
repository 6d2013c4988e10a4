"""What a step's `SchedulerOutput` carries from the scheduler to the workers."""

from dataclasses import dataclass, field

from ghosttrace.serving.paging import Compaction


@dataclass(frozen=True)
class Step:
    """Erasure in one step of the engine.

    Attributes:
        compactions: by request, in order, what moves before anything is read.
        erased: by request, keys gone: a token at place p is held at slot p - erased.
        renumbered: requests whose positions close up, too.
        places: by request that was sent elsewhere, the place that it reads next, and how many of its tokens are known.
    """

    compactions: dict[str, list[Compaction]] = field(default_factory=dict)
    erased: dict[str, int] = field(default_factory=dict)
    renumbered: frozenset[str] = frozenset()
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
