"""Sweeps of targets whose posterior given the text is not known: open states are paired with sealed states.

N-grams read little of what a text says about a natural attribute, so the baseline of every site is a stronger decoder
of the text (`ghosttrace.probing.text_decoder`): first the best linear probe of the sealed cache at any carrier, of the
keys and values of the probed, first and last layers and of the last hidden state, from which the model predicts the
next token; then the same probe as the open cache gets, at the same site of the sealed cache. The bits of an open row
are

    log2 p(label | text, sealed states, open states) - log2 p(label | text, sealed states),

paired by sample. Since a sealed cache cannot exceed its own decoder, the negative control is a *swapped* cache: the
same retained text, computed while blocks of other traces were visible. Its states say as much about the text as those
of the open cache and nothing about the label beyond it. They exceed the baseline where the decoders read too little of
the text, for example because they have too few traces.

Blocks often repeat what the text says. An open cache then helps a decoder that has not learned to read the text, which
no swapped cache shows. So an open row is significant only if it exceeds what the best decoder gained from the second
half of its traces (`half-decoder`): about what it is still short of, if its loss falls with the number of traces n as
1 / n, as that of a regression does.

Other conditions are `decoder`, what the sealed states read beyond the n-grams, and `earlier`, the open states of the
memento before the block. Earlier blocks may predict a natural attribute, so this row is no control.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import numpy as np
from torch import Tensor

from ghosttrace.data.task import Task
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.geometry import CacheGeometry
from ghosttrace.model.pool import ModelPool
from ghosttrace.probing.carriers import Carrier
from ghosttrace.probing.evidence import ProbeTarget, record, score
from ghosttrace.probing.features import StateSelection, resolve_layers
from ghosttrace.probing.places import erased_texts
from ghosttrace.probing.probes import Probe
from ghosttrace.probing.settings import ProbeSettings
from ghosttrace.probing.site import ProbeSite
from ghosttrace.probing.sweep import Fit, Sweep, site_groups, state_selections
from ghosttrace.probing.text_decoder import half_of_train, linear_fit, probe_fit, with_decoder
from ghosttrace.runs.records import Records

STREAM = 0x5A4B  # of random numbers


def needs_pairing(task: Task) -> bool:
    """Return whether some target has no exact posterior given the text."""
    return any(target.name not in task.exact_log_posteriors for target in task.targets)


def paired_selections(checkpoint: Checkpoint, settings: ProbeSettings, secret: Carrier) -> dict[str, StateSelection]:
    """Return the states that a paired sweep reads; those of `swapped` belong to `swapped_task`.

    The last hidden states of the sealed cache are named `predictive`, unless hidden states are probed anyway.
    """
    opened, _ = state_selections(checkpoint, settings, secret)
    layers = decoder_layers(checkpoint, settings)
    sealed = replace(opened, cache="sealed", carriers=settings.carriers, layers=layers)
    selections = {"open": opened, "sealed": sealed, "swapped": replace(opened, carriers=settings.carriers)}
    predictive = replace(sealed, layers=layers[-1:], hidden=True)
    return selections if sealed.hidden else selections | {"predictive": predictive}


def decoder_layers(checkpoint: Checkpoint, settings: ProbeSettings) -> tuple[int, ...]:
    """Return the layers whose sealed states may decode the text: the probed ones, the first and the last."""
    last = CacheGeometry.from_config(checkpoint.model.config).layers - 1
    return tuple(sorted({*resolve_layers(checkpoint, settings.layers), 0, last}))


def swapped_task(task: Task, checkpoint: Checkpoint, seed: int) -> Task:
    """Return the task with every block replaced by a random block of any of its samples, of the same length.

    Under other laws than Memento's, the turn that holds the secret is replaced by such a turn of another sample. A
    block is cut, or repeated from its beginning, so that the retained tokens keep their positions. All blocks are drawn
    with equal probability, whatever their labels.

    Args:
        task: Traces with finished blocks, or with erased turns.
        checkpoint: Provides the law.
        seed: Random seed of the blocks.
    """
    spans = [[slice(each.start, each.stop) for each in erased_texts(checkpoint, sample)] for sample in task.samples]
    pool = [(row, span) for row, of_row in enumerate(spans) for span in of_row if span.start < span.stop]
    rng = np.random.default_rng([seed, STREAM])
    samples = []
    for sample, of_sample in zip(task.samples, spans, strict=True):
        ids = np.array(sample.ids)
        for span in of_sample:
            row, donor = pool[rng.integers(len(pool))]
            ids[span] = np.resize(np.asarray(task.samples[row].ids[donor]), span.stop - span.start)
        samples.append(replace(sample, ids=ids.tolist()))
    return replace(task, samples=tuple(samples))


@dataclass(frozen=True)
class PairedSweep(Sweep):
    """A sweep of open states beyond decoders of the text; `features` holds the caches of `paired_selections`."""

    best_site_conditions: ClassVar[tuple[str, ...]] = ("open", "swapped", "decoder", "shuffled", "earlier")
    _start: list[ProbeTarget] = field(init=False, repr=False, compare=False, default_factory=list)
    _last: dict[ProbeSite, list[ProbeTarget]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def run(
        self,
        records: Records,
        progress: Callable[[int, int], None] | None = None,
        pool: ModelPool | None = None,
    ) -> None:
        """Fit decoders of the text at every site, then all other probes beyond the best of them."""
        sites = self._decoder_sites()
        self._fit_all([Fit("linear", "decoder", (site,)) for site in sites], records, None, pool)
        best = max(sites, key=partial(self._decoder_gain, records))
        fit, states = linear_fit(self.device), self._read("decoder", best)
        self._start[:] = with_decoder(fit, states, self.targets, self.split)
        half = half_of_train(self.split, self.settings.seed)
        for target, weaker in zip(self._start, fit(states, self.targets, half), strict=True):
            gained = score(replace(target, text=weaker), target.text, self.split)
            records.add(record(gained, condition="half-decoder", probe="linear", **best.result_columns))
        super().run(records, progress, pool)

    def _decoder_sites(self) -> list[ProbeSite]:
        """Return the sites of the sealed cache that may decode the text."""
        layers, carriers = decoder_layers(self.checkpoint, self.settings), self.settings.carriers
        settings = replace(self.settings, layers=layers)
        groups = [group for carrier in carriers for group in site_groups(self.checkpoint, settings, carrier)]
        kept = [site for group in groups for site in group]
        predictive = [ProbeSite(carrier, layers[-1:], "hidden") for carrier in carriers]
        return [*kept, *(site for site in predictive if site not in kept)]

    def _decoder_gain(self, records: Records, site: ProbeSite) -> float:
        """Return the validation bits of a site's linear decoder, summed over targets."""
        keys = (("decoder", *site.result_columns.values(), "linear", target.name) for target in self.targets)
        return float(sum(records.get(key)["validation_bits"] for key in keys))

    def _groups(self, carrier: Carrier) -> list[list[ProbeSite]]:
        """Return every site of one carrier alone, since each site has a baseline of its own."""
        return [[site] for group in super()._groups(carrier) for site in group]

    def _conditions(self, site: ProbeSite) -> tuple[str, ...]:
        if site.carrier.kind == "secret":
            return super()._conditions(site)
        return ("earlier", "swapped") if site.carrier.hop < 0 else ("open", "swapped")

    def _read(self, condition: str, site: ProbeSite) -> Tensor:
        if condition == "decoder":
            condition = "predictive" if site.kv == "hidden" and "predictive" in self.features else "sealed"
        return super()._read(condition, site)

    def _targets(self, condition: str, site: ProbeSite, probe: Probe | None = None) -> list[ProbeTarget]:
        if condition not in ("open", "swapped", "earlier"):
            return super()._targets(condition, site, probe)
        states = self._read("decoder", site)
        if site not in self._last:
            self._last.clear()
            self._last[site] = with_decoder(linear_fit(self.device), states, self._start, self.split)
        if probe is None:
            return self._last[site]
        return with_decoder(probe_fit(probe, self.settings.seed, self.device), states, self._last[site], self.split)
