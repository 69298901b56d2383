"""Metrics in prometheus_client's multiprocess mode: written into its files, not read at scrape."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import values

from headrace.observe.families import FAMILIES, Family, Labels, Value
from headrace.observe.isolation import each
from headrace.observe.samples import Samples, le_labels, merged
from headrace.policy.counters import Histogram

Read = Callable[[], Samples]

Cell = tuple[str, str, Labels, Labels]
"""Family name, sample name, label names, label values: one number of prometheus_client's files."""


class Writer:
    """Keeps this process's memory-mapped values up to date.

    A cell is a `prometheus_client.values.ValueClass`. This is the class behind Counter, Gauge
    and Histogram; prometheus_client's README tells people how to replace it. The Histogram
    object itself is of no use: it offers `observe(value)`, and all that is known here is how
    many values fell into each bucket.

    Counters are written as differences per instance, gauges as the merged value of
    all instances. A fork costs nothing. The parent flushes before it, so what a child
    inherits as "written" is what the parent wrote. prometheus_client itself turns
    to a new file when the pid changes.
    """

    def __init__(self) -> None:
        # Guards all below. Readings are taken under it as well, so that an older one is never written last.
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._cells: dict[Cell, Any] = {}
        self._written: dict[Read, Samples] = {}
        self._gauges: dict[Cell, float] = {}

    def add(self, read: Read) -> None:
        with self._lock:
            self._written.setdefault(read, {})

    def remove(self, read: Read) -> None:
        each((read,), self.flush, doing="write the last metrics of an instance")
        with self._lock:
            self._written.pop(read, None)
            self._write_gauges()

    def flush(self, read: Read) -> None:
        if os.getpid() != self._pid:
            self.after_fork_in_child()  # C code has called fork(2), and no hook ran
        with self._lock:
            if read in self._written:
                now = read()
                self._write_counters(self._written[read], now)
                self._written[read] = now
                self._write_gauges()

    def flush_all(self) -> None:
        each(tuple(self._written), self.flush, doing="write the metrics of an instance")

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()  # a thread that does not exist here may have held it
        self._pid = os.getpid()
        self._gauges.clear()

    def _write_counters(self, before: Samples, now: Samples) -> None:
        for name, samples in now.items():
            family, label_names = FAMILIES[name]
            if family.kind == "gauge":
                continue
            written = before.get(name, {})
            for labels, value in samples.items():
                old = written.get(labels)
                if old is not None and _is_same(old, value):
                    continue
                totals = dict(_cells_of(family, label_names, labels, old)) if old is not None else {}
                for cell, total in _cells_of(family, label_names, labels, value):
                    was = totals.get(cell, 0.0)
                    if total != was or old is None:
                        # A total that went down has begun anew. All of it counts, as it does for Prometheus.
                        self._value(cell).inc(total - was if total >= was else total)

    def _write_gauges(self) -> None:
        now: dict[Cell, float] = {}
        for name, samples in merged(list(self._written.values())).items():
            family, label_names = FAMILIES[name]
            if family.kind == "gauge":
                for labels, value in samples.items():
                    now.update(_cells_of(family, label_names, labels, value))
        for cell in self._gauges.keys() - now.keys():
            now[cell] = FAMILIES[cell[0]][0].gone
        for cell, value in now.items():
            if self._gauges.get(cell) != value:
                self._value(cell).set(value)
                self._gauges[cell] = value

    def _value(self, cell: Cell) -> Any:
        value = self._cells.get(cell)
        if value is None:
            name, sample_name, label_names, labels = cell
            family = FAMILIES[name][0]
            value = self._cells[cell] = values.ValueClass(
                family.kind,
                name.removesuffix("_total"),
                sample_name,
                label_names,
                labels,
                family.documentation,
                multiprocess_mode=family.across_processes,
            )
        return value


def _cells_of(
    family: Family[Any], names: Labels, labels: Labels, value: Value
) -> Iterator[tuple[Cell, float]]:
    """The numbers of one sample as prometheus_client's files hold them: buckets not cumulative, no _count."""
    if not isinstance(value, Histogram):
        yield (family.name, family.name, names, labels), value
        return
    for bound, count in zip(le_labels(value), value.counts, strict=True):
        yield (family.name, f"{family.name}_bucket", (*names, "le"), (*labels, bound)), count
    yield (family.name, f"{family.name}_sum", names, labels), value.sum


def _is_same(old: Value, new: Value) -> bool:
    if isinstance(old, Histogram) and isinstance(new, Histogram):
        return old.sum == new.sum and old.counts == new.counts
    return old == new


WRITER = Writer()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=WRITER.flush_all, after_in_child=WRITER.after_fork_in_child)


def is_multiprocess() -> bool:
    """Whether prometheus_client found PROMETHEUS_MULTIPROC_DIR when it was imported; it decides once."""
    return bool(getattr(values.ValueClass, "_multiprocess", False))
