"""The values of all families: made of one reading, and of the readings of several instances made one.

`samples_of` copies the totals of each upstream before it reads any row, and so it takes one `UpstreamCounters.lock`
after the other, never two. Its result is plain data of the caller's own: `merged` and everything that shows it work
without a lock. An upstream that cannot be read is left out as a whole. Half of it would show a total without its
parts.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from prometheus_client.utils import floatToGoString

from headrace.observe.families import FAMILIES, SERVICE_FAMILIES, UPSTREAM_FAMILIES, Labels, Value
from headrace.observe.isolation import answers
from headrace.observe.readings import Reading, UpstreamReading
from headrace.policy.counters import Histogram

Samples = Mapping[str, Mapping[Labels, Value]]
"""Values by family name and label values."""


def samples_of(reading: Reading) -> Samples:
    """All samples of *reading*, its counters copied: the caller's own. An upstream that cannot be read is left out."""
    service = reading.service.copy()
    found: dict[str, dict[Labels, Value]] = {family.name: {} for family in UPSTREAM_FAMILIES}
    for _, rows in answers(
        reading.upstreams, _rows_of, doing="fold the metrics of an upstream", of=lambda one: one.name
    ):
        for name, labels, value in rows:
            found[name][labels] = value
    for service_family in SERVICE_FAMILIES:
        found[service_family.name] = dict(service_family.read(service))
    return found


def _rows_of(upstream: UpstreamReading) -> list[tuple[str, Labels, Value]]:
    """All rows of an upstream or, where one raises, none: half of them would lie."""
    copied = upstream.copy()
    return [
        (family.name, (copied.name, *labels), value)
        for family in UPSTREAM_FAMILIES
        for labels, value in family.read(copied)
    ]


def _added(old: Histogram, new: Histogram) -> Histogram:
    """The counts of both, which have the same bounds."""
    total = Histogram(old.bounds)
    total.counts = [a + b for a, b in zip(old.counts, new.counts, strict=True)]
    total.sum = old.sum + new.sum
    total.exemplars = {**old.exemplars, **new.exemplars}
    return total


def merged(instances: Sequence[Samples]) -> Samples:
    """The samples of all *instances*. Equal label sets are made one, as the table says."""
    if len(instances) == 1:
        return instances[0]
    merged: dict[str, dict[Labels, Value]] = {name: {} for name in FAMILIES}
    for instance in instances:
        for name, samples in instance.items():
            family, into = FAMILIES[name][0], merged[name]
            for labels, value in samples.items():
                old = into.get(labels)
                if isinstance(old, Histogram) and isinstance(value, Histogram):
                    into[labels] = _added(old, value)
                elif isinstance(old, float | int) and isinstance(value, float | int):
                    into[labels] = family.merge(old, value)
                else:
                    into[labels] = value
    return merged


def le_labels(histogram: Histogram) -> Sequence[str]:
    """The `le` label of each bucket, in prometheus_client's spelling."""
    return _le_labels_of(histogram.bounds)


@functools.cache  # there are no more bounds than kinds of histograms
def _le_labels_of(bounds: tuple[float, ...]) -> Sequence[str]:
    return (*map(floatToGoString, bounds), "+Inf")
