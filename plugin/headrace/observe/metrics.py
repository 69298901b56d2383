"""What one instance shows to prometheus, folded from exact totals at the moment somebody looks.

A call touches no prometheus object. It adds to plain totals, under their own lock.
There are two ways out of the one table in `families`:

- a Collector on a registry, which reads at scrape;
- in prometheus_client's multiprocess mode (PROMETHEUS_MULTIPROC_DIR set when it was
  imported), `multiprocess` adds what is new to its memory-mapped values. There the
  application exposes a `MultiProcessCollector`, so nothing is put on any registry.

Several instances may live in one process. Instances on one registry share one
Collector; equal label sets are merged as the table's `merge` says.

**Who reads, when, under which lock.** A scrape runs on a thread of the exporter. It calls `collect`, which holds no
lock of ours: a reading may take its time, and the start of another instance must not wait for it. A flush runs on the
housekeeping thread, before a fork and at `uninstall`. It holds `Writer._lock` while it reads, so that an older
reading is never written last. `_Collector._lock` guards which instances are shown, and the registry's own lock is
taken under it; `_collectors_lock` guards only which registry has which collector. No reading is taken under either of
these two.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, WeakValueDictionary

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.samples import Exemplar

from headrace.observe.events import ConfigWarning
from headrace.observe.families import FAMILIES, Family, Labels
from headrace.observe.isolation import answers, undisturbed
from headrace.observe.logs import emit
from headrace.observe.multiprocess import WRITER, is_multiprocess
from headrace.observe.readings import Reading
from headrace.observe.samples import Samples, le_labels, merged, samples_of
from headrace.policy.counters import Histogram

Registry: TypeAlias = CollectorRegistry
"""For annotations outside, where prometheus_client is not imported."""


class Metrics:
    """What one instance shows to prometheus.

    Args:
        read: Answers the instance's Reading. It is called at a scrape or a flush, by any
            thread, with no counters lock held. An upstream's counters are copied after that.
        registry: Where to show them; prometheus_client's default one when None.
            In multiprocess mode no registry is touched.
        key: What the instance is made of. Before its start it is shown only where no other of this key is.
    """

    def __init__(
        self, read: Callable[[], Reading], *, registry: Registry | None = None, key: Hashable = None
    ) -> None:
        self.key = key
        self._read = read
        self._registry = REGISTRY if registry is None else registry

    def install(self) -> None:
        """Show them from now on. Idempotent."""
        if not is_multiprocess():
            _on_registry(self._registry).add(self)
        elif (directory := os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")) and os.path.isdir(directory):
            WRITER.add(self.samples)
        else:
            emit(
                ConfigWarning(
                    f"PROMETHEUS_MULTIPROC_DIR={directory!r} is not a directory, so there are no metrics; "
                    "create it before the workers start"
                )
            )

    def foretell(self) -> None:
        """Show them although the instance has not started, as long as somebody holds it. Idempotent.

        Does nothing in multiprocess mode.
        """
        if not is_multiprocess():
            _on_registry(self._registry).foretell(self)

    def uninstall(self) -> None:
        """Stop showing them, after a last flush. Idempotent."""
        if not is_multiprocess():
            _on_registry(self._registry).remove(self)
        else:
            WRITER.remove(self.samples)

    def flush(self) -> None:
        """Write what is new into the multiprocess files; nothing to do outside that mode.

        Blocks on a lock and calls `read`: never call it holding a pool's or a counters' lock.
        """
        if is_multiprocess():
            WRITER.flush(self.samples)

    def samples(self) -> Samples:
        """Values by family name and label values, copied: the caller's own."""
        return samples_of(self._read())


class _Collector:
    """The one collector that a registry gets, for all instances shown on it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._lock = threading.Lock()  # guards all below; the registry's own lock is taken under it
        self._instances: list[Metrics] = []
        # Not started. Nothing will take out those that are dropped before they start, so nothing here keeps them.
        self._foretold: WeakValueDictionary[int, Metrics] = WeakValueDictionary()  # by id
        self._is_shown = False  # by the registry, as far as we know

    # Each step is noted before it is taken, and it is undone whether or not it was taken: an interrupt may come in
    # between. The registry itself writes a hundred names one by one. Broken off halfway, it would refuse ours for good.

    def add(self, metrics: Metrics) -> None:
        with self._lock:
            if metrics not in self._instances:
                self._instances.append(metrics)
            try:
                self._show()
            except Exception:
                self._instances.remove(metrics)
                raise

    def foretell(self, metrics: Metrics) -> None:
        with self._lock:
            self._show()
            self._foretold[id(metrics)] = metrics

    def _show(self) -> None:
        if not self._is_shown:
            self._is_shown = True
            try:
                undisturbed(functools.partial(self._registry.register, self))
            except Exception:
                self._is_shown = False
                raise

    def remove(self, metrics: Metrics) -> None:
        with self._lock:
            if metrics in self._instances:
                self._instances.remove(metrics)
            self._foretold.pop(id(metrics), None)
            if self._is_shown and not self._instances and not self._foretold:
                try:
                    undisturbed(functools.partial(self._registry.unregister, self))
                except KeyError:
                    pass
                self._is_shown = False

    def describe(self) -> Iterable[Metric]:
        """Names and types, without a reading. With auto_describe, a registry would collect at registration."""
        return [_family_of(family, labels) for family, labels in FAMILIES.values()]

    def collect(self) -> Iterator[Metric]:
        # Not under _lock: a reading may take its time, and an install must not wait for it.
        instances = tuple(self._instances)
        foretold = {one.key: one for ref in self._foretold.valuerefs() if (one := ref()) is not None}
        for started in instances:
            foretold.pop(started.key, None)
        instances += tuple(foretold.values())
        readings = [found for _, found in answers(instances, Metrics.samples, doing="read an instance")]
        for name, samples in merged(readings).items():
            family, label_names = FAMILIES[name]
            metric = _family_of(family, label_names)
            for labels, value in samples.items():
                if not isinstance(value, Histogram):
                    metric.add_metric(labels, value)
                else:
                    metric.add_metric(labels, _buckets_of(value), value.sum)
            yield metric


def _buckets_of(histogram: Histogram) -> list[Any]:
    """Upper bound, cumulative count and, where there is one, exemplar of each bucket, as `add_metric` takes them."""
    total, buckets = 0, []
    for index, (bound, count) in enumerate(zip(le_labels(histogram), histogram.counts, strict=True)):
        total += count
        kept = histogram.exemplars.get(index)
        if kept is None:
            buckets.append((bound, total))
        else:
            labels = {"trace_id": kept.trace_id, "span_id": kept.span_id}
            buckets.append((bound, total, Exemplar(labels, kept.value, kept.at_s)))  # type: ignore[arg-type]
    return buckets


def _family_of(family: Family[Any], labels: Labels) -> Any:
    """An empty prometheus family. Any: `add_metric` has another signature in each of the three."""
    make = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}[
        family.kind
    ]
    return make(family.name, family.documentation, labels=labels)


_collectors: WeakKeyDictionary[CollectorRegistry, _Collector] = WeakKeyDictionary()
_collectors_lock = threading.Lock()


def _forget_inherited() -> None:
    """In a forked child: the thread that held these locks does not exist here."""
    global _collectors_lock
    _collectors_lock = threading.Lock()
    for collector in list(_collectors.values()):
        collector._lock = threading.Lock()  # cannot raise


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_inherited)


def _on_registry(registry: CollectorRegistry) -> _Collector:
    with _collectors_lock:
        return _collectors.setdefault(registry, _Collector(registry))
