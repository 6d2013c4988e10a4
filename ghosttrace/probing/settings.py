"""Settings of a sweep of probes."""

from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from ghosttrace.errors import UserError, check_method
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.carriers import CARRIERS, Carrier, CarrierKind, Pooling, check_carriers
from ghosttrace.probing.features import resolve_layers
from ghosttrace.probing.probes import MLP, Probe
from ghosttrace.probing.site import Kv
from ghosttrace.runs.folder import stable_repr

RESERVED_PROBE_NAMES = ("linear", "online", "text", "exact")  # probes that are always fitted


@dataclass(frozen=True)
class ProbeSettings:
    """Settings of a sweep.

    Attributes:
        kinds: Carriers to probe at `hops`, of those that the law knows; each is also probed at hop -1, as the causal
            control.
        hops: Hops from the secret, 0 or more; see `Carrier`.
        layers: Layers of the model, ascending; None for all.
        kv: Kinds of states: keys, values, keys and values concatenated, hidden states.
        by_head: Also probe each key-value head separately.
        joint: Also probe all layers concatenated.
        pool: Pooling of a carrier's tokens, see `Carrier`.
        mlp: Also fit an MLP at the best site of each hop; in an audit, at all `nonlinear_sites`.
        probes: Other probes to fit where the MLP is fitted.
        describe: Also measure selectivity and the online code length, which affect no verdict. Audits skip them.
        within_traces: Let train, validation and test share base traces, see `split`.
        seed: Random seed of splits, control tasks and probes.
    """

    kinds: tuple[CarrierKind, ...] = ("memento",)
    hops: tuple[int, ...] = (0, 1, 2)
    layers: tuple[int, ...] | None = None
    kv: tuple[Kv, ...] = ("k", "v")
    by_head: bool = False
    joint: bool = False
    pool: Pooling = "all"
    mlp: bool = True
    probes: tuple[Probe, ...] = ()
    describe: bool = True
    within_traces: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, chosen, known in (("carriers", self.kinds, CARRIERS), ("kv", self.kv, get_args(Kv))):
            if not chosen or not set(chosen) <= set(known):
                raise UserError(f"--{name} must be a list of {', '.join(known)}, not {','.join(chosen)!r}")
        if not (self.pool in ("all", "mean") or (isinstance(self.pool, int) and self.pool > 0)):
            raise UserError(f"--pool must be all, mean or a number of tokens, not {self.pool!r}")
        for probe in self.probes:
            check_method(probe, Probe, "name")
        names = [*RESERVED_PROBE_NAMES, *(probe.name for probe in self.best_site_probes)]
        duplicate = next((name for name in names if names.count(name) > 1), None)
        if duplicate or self.seed < 0:
            raise UserError(
                f"two probes are called {duplicate!r}: rename yours" if duplicate else "--seed must be 0 or more"
            )

    @property
    def best_site_probes(self) -> tuple[Probe, ...]:
        """The probes fitted at the best site of each hop, under every condition."""
        return (*((MLP(),) if self.mlp else ()), *self.probes)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as recorded in run.json; probes by their `repr`."""
        return asdict(replace(self, probes=())) | {"probes": list(map(stable_repr, self.probes))}

    @property
    def carriers(self) -> tuple[Carrier, ...]:
        """Every carrier at every hop, for each kind the causal control first."""
        carriers = [Carrier(kind, hop, self.pool) for kind in self.kinds for hop in (-1, *self.hops)]
        # The secret's own block contains it until it is erased, so it is the control `unerased` and no carrier; and a
        # trace has one last token, at hop 0.
        left_out = {("block", 0), *(("last", hop) for hop in self.hops if hop)}
        return tuple(carrier for carrier in carriers if (carrier.kind, carrier.hop) not in left_out)

    def check(self, checkpoint: Checkpoint) -> None:
        """Check that the settings fit a checkpoint.

        Raises:
            UserError: A layer is out of range, the law does not know or retain a carrier, or the hops are empty,
                negative or include no carrier.
        """
        check_carriers(self.kinds, checkpoint)
        resolve_layers(checkpoint, self.layers)
        if not self.hops or min(self.hops) < 0:
            raise UserError("--hops must be 0 (the secret's own memento) or more: hop -1 is always probed as a control")
        if all(carrier.hop < 0 for carrier in self.carriers):
            if "last" in self.kinds:
                raise UserError("the last token is a carrier at hop 0 only: add 0 to --hops")
            raise UserError("the block at hop 0 contains the secret and is no carrier: give --hops 1 or later")
