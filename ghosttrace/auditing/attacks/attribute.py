"""`attribute`: probes read the secret's parts from retained keys and values, at every site, under every control.

The finding of a secret is the probe that did best on validation, over all sites and both kinds of probe;
all the others are reported beside it.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from ghosttrace.auditing.context import Exhibit, where
from ghosttrace.auditing.evidence import Evidence, Site, Told, total
from ghosttrace.probing import sweep
from ghosttrace.probing.text import marginals
from ghosttrace.runs.records import Records

NAME = "attribute"
SITE = ("carrier", "hop", "layer", "kv", "head", "probe")


def attribute(exhibit: Exhibit, records: Records) -> list[Evidence]:
    """Bits a secret beyond the text, for each secret, with the same site's controls.

    Args:
        exhibit: what to attack.
        records: of a finished `Sweep` over the exhibit.
    """
    rows = list(map(records.get, records.keys()))
    found = []
    for secret, members in exhibit.secrets.items():
        names = {exhibit.asked[number].name for number in members}
        mine = [row for row in rows if row["target"] in names]
        site = best_probe(mine)
        conditions = ["open", "sealed", *(["shuffled"] if site["probe"] == "linear" else [])]
        for condition in conditions:
            found.append(evidence_of(exhibit, secret, condition, [r for r in mine if _at(r, site, condition)]))
        for condition in ("causal", "unerased"):
            groups = _by_site([row for row in mine if row["condition"] == condition])
            best = max(groups, key=_validation)
            found.append(evidence_of(exhibit, secret, condition, best))
    return found


def tenant(exhibit: Exhibit, secret: str, site: sweep.Site) -> Evidence:
    """Bits a secret that the cache tells one who has not seen the text; what the text tells may be among them.

    They are counted from how often each class occurs, which is no secret.
    """
    said, asked = exhibit.posteriors(secret, site, flat=True), exhibit.parts(secret)
    rows = exhibit.known(secret, exhibit.split.test)
    train, log2e = exhibit.split.train, 1 / np.log(2)
    parts = [
        Told(rows, log2e * part[rows, right], log2e * marginals(one.labels, one.text.shape[1], train)[right])
        for part, one in zip(said, asked, strict=True)
        for right in [one.labels[rows]]
    ]
    estimate, _ = total(parts, exhibit.split.cluster, 0.05)
    return Evidence("tenant", secret, "open", "bits", estimate, len(rows), site=where(site), note="text included")


def best_probe(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The site and probe with the most bits on validation."""
    groups = _by_site([row for row in rows if row["condition"] == "open" and row["probe"] in ("linear", "mlp")])
    best = max(groups, key=_validation)[0]
    return {name: best[name] for name in SITE}


def best_site(exhibit: Exhibit, records: Records, secret: str) -> sweep.Site:
    """The site whose linear probe of a secret did best on validation."""
    names = {exhibit.asked[number].name for number in exhibit.secrets[secret]}
    rows = list(map(records.get, records.keys()))
    best = best_probe(row for row in rows if row["target"] in names and row["probe"] == "linear")
    every = (
        site
        for carrier in exhibit.settings.carriers
        for group in sweep.groups(exhibit.checkpoint, exhibit.settings, carrier)
        for site in group
    )
    return next(site for site in every if site.names == {name: best[name] for name in site.names})


def _at(row: dict[str, Any], site: dict[str, Any], condition: str) -> bool:
    return row["condition"] == condition and all(row[name] == value for name, value in site.items())


def _by_site(rows: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in SITE), []).append(row)
    return list(groups.values())


def _validation(rows: list[dict[str, Any]]) -> float:
    return float(sum(row["validation_bits"] for row in rows))


def evidence_of(exhibit: Exhibit, secret: str, condition: str, rows: list[dict[str, Any]]) -> Evidence:
    """The sum over a secret's targets, on the traces that all of them apply to."""
    lists = [[np.asarray(row[name]) for name in ("sample", "log2p", "text_log2p")] for row in rows]
    gate = condition == "open"
    parts = [Told(*one) for one in lists]
    found, common = total(parts, exhibit.split.cluster, exhibit.alpha if gate else 0.05)
    site = Site(**{name: rows[0][name] for name in SITE})
    return Evidence(NAME, secret, condition, "bits", found, len(common), gate=gate, site=site)
