"""Probes that are fitted in addition to the linear one, at the best site of each hop and under every condition.

To add a probe, write a file with a frozen dataclass derived from `Probe`, add it to `PROBES`, and add a row to
`MATRIX` in tests/test_probes.py.
"""

from ghosttrace.probing.probes.mlp import MLP
from ghosttrace.probing.probes.probe import Probe
from ghosttrace.probing.probes.unusual_traces import UnusualTraces

PROBES: dict[str, type[Probe]] = {kind.name: kind for kind in (MLP, UnusualTraces)}
"""The bundled probes by name."""

__all__ = ["MLP", "PROBES", "Probe", "UnusualTraces"]
