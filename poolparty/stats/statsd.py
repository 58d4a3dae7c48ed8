"""The pools' figures as lines of statsd, made from the metrics that Prometheus gets: of two snapshots.

A counter is sent as what it has grown by, so a receiver may add up several servers. Three things differ from
a scrape. Processes are summed by role and pool, so that a large pool does not flood the receiver. Counters of
seconds are sent as whole milliseconds: receivers count in whole numbers. A histogram is sent as its mean and
percentiles, of what it has counted since the last time, as gauges: statsd has no buckets, and percentiles
sent as timings would have a receiver take percentiles of percentiles.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from poolparty.stats import metrics
from poolparty.stats.counters import quantile

NAMESPACE = "poolparty."

MAX_DATAGRAM = 1432
"""Bytes of one datagram: with its headers it passes an Ethernet and most tunnels in one piece."""

PERCENTILES = (50, 90, 99)

SUMMED = "slot"
"""The label over which figures are summed."""

Labels = tuple[tuple[str, str], ...]
Key = tuple[str, Labels]
"""A metric without its prefix, and its labels in the order of its declaration."""


@dataclass(frozen=True, slots=True)
class Naming:
    """prefix: what stands in front of every name, with its dot. tags: Datadog's, `name:value` with commas
    between.

    Where there are tags, the receiver knows them, and labels are sent as tags too; without, their values
    become the last parts of the name.
    """

    prefix: str = ""
    tags: str = ""

    def line(self, key: Key, value: float, kind: str) -> bytes:
        """kind: `c` or `g`."""
        name, labels = key
        tags = ""
        if self.tags:
            tags = "|#" + ",".join((*(f"{label}:{text}" for label, text in labels), self.tags))
        else:
            name = ".".join((name, *(text for _, text in labels)))
        return f"{self.prefix}{NAMESPACE}{name}:{_number(value)}|{kind}{tags}".encode()


def _number(value: float) -> str:
    """In decimals: not every receiver reads an exponent."""
    text = f"{value:.6f}"
    return text.rstrip("0").rstrip(".")


@dataclass(slots=True)
class _Figures:
    """What a snapshot says, by kind; of a histogram the count of each bucket by itself, and the sum."""

    counters: dict[Key, float] = field(default_factory=dict)
    gauges: dict[Key, float] = field(default_factory=dict)
    histograms: dict[Key, tuple[list[float], float]] = field(default_factory=dict)


def _figures(snapshot: Mapping[str, Any]) -> _Figures:
    figures = _Figures()
    for family in metrics.families(snapshot):
        name = family.name.removeprefix(metrics.PREFIX)
        for sample in family.samples:
            # One without a value is none, as Prometheus has it.
            labels = ((label, text) for label, text in sample.labels.items() if text and label != "le")
            key = name, tuple(labels)
            if family.type == "counter":
                figures.counters[key] = sample.value
            elif family.type == "gauge":
                figures.gauges[key] = sample.value
            elif family.type == "histogram":
                counts, _ = figures.histograms.get(key, ([], 0.0))
                if sample.name.endswith("_bucket"):
                    figures.histograms[key] = [*counts, sample.value - sum(counts)], 0.0
                elif sample.name.endswith("_sum"):
                    figures.histograms[key] = counts, sample.value
    return figures


def lines(snapshot: Mapping[str, Any], previous: Mapping[str, Any] | None, naming: Naming) -> list[bytes]:
    """What to send: gauges as they are now, and what has been counted since the previous snapshot.

    previous: None where nothing has been sent yet; then everything counted so far is.

    A counter that has not grown is left out. After a time in which a histogram has counted nothing, its mean
    and percentiles are 0: a receiver would go on showing the last ones.
    """
    now, before = _figures(snapshot), _figures(previous) if previous is not None else _Figures()
    found = [naming.line(key, value, "g") for key, value in _summed(now.gauges).items()]
    for key, (counts, total) in now.histograms.items():
        old_counts, old_total = before.histograms.get(key, ([0] * len(counts), 0.0))
        grown = [after - earlier for after, earlier in zip(counts, old_counts, strict=True)]
        seen = round(sum(grown))
        now.counters[_suffixed(key, "_count")] = sum(counts)
        before.counters[_suffixed(key, "_count")] = sum(old_counts)
        mean = (total - old_total) / seen if seen else 0.0
        found.append(naming.line(_suffixed(key, "_mean"), mean, "g"))
        for percent in PERCENTILES:
            below = quantile([round(count) for count in grown], percent / 100) or 0.0
            found.append(naming.line(_suffixed(key, f"_p{percent}"), below, "g"))
    counted = {_in_whole_numbers(key): _growth(key, now.counters, before.counters) for key in now.counters}
    found += [naming.line(key, growth, "c") for key, growth in _summed(counted).items() if growth]
    return found


SECONDS, MILLISECONDS = "_seconds", "_milliseconds"


def _in_whole_numbers(key: Key) -> Key:
    name, labels = key
    return (name.removesuffix(SECONDS) + MILLISECONDS, labels) if name.endswith(SECONDS) else key


def _growth(key: Key, now: Mapping[Key, float], before: Mapping[Key, float]) -> int:
    scale = 1000 if key[0].endswith(SECONDS) else 1
    after, earlier = round(scale * now[key]), round(scale * before.get(key, 0))
    # A slot that has another process now begins anew.
    return after - earlier if after >= earlier else after


def _suffixed(key: Key, suffix: str) -> Key:
    return key[0] + suffix, key[1]


def _summed(figures: Mapping[Key, float]) -> dict[Key, float]:
    sums: dict[Key, float] = {}
    for (name, labels), value in figures.items():
        key = name, tuple((label, text) for label, text in labels if label != SUMMED)
        sums[key] = sums.get(key, 0) + value
    return sums


def datagrams(messages: Iterable[bytes]) -> Iterator[bytes]:
    """The lines, packed as tightly as MAX_DATAGRAM lets them."""
    packed = b""
    for message in messages:
        if packed and len(packed) + 1 + len(message) > MAX_DATAGRAM:
            yield packed
            packed = b""
        packed = packed + b"\n" + message if packed else message
    if packed:
        yield packed
