"""What the server says about itself: counts and times of requests and clicks, in the text format of Prometheus."""

from __future__ import annotations

import bisect
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
OTHER = "other"  # route of a request that met none: paths are the client's, and would be without number

Labels = tuple[tuple[str, str], ...]
Gauges = Callable[[], Mapping[str, Mapping[Labels, float]]]


class _Histogram:
    """Counts per bucket, the last of which has no bound."""

    def __init__(self):
        self.counts, self.sum = [0] * (len(SECONDS) + 1), 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(SECONDS, seconds)] += 1
        self.sum += seconds


class Monitor:
    """Counters and histograms of one server.

    Args:
        gauges: names to labels to values, as they are when somebody asks.
    """

    def __init__(self, gauges: Gauges = dict):
        self._gauges = gauges
        self._lock = threading.Lock()
        self._requests: defaultdict[Labels, int] = defaultdict(int)
        self._seconds: defaultdict[Labels, _Histogram] = defaultdict(_Histogram)
        self._stages: defaultdict[Labels, _Histogram] = defaultdict(_Histogram)
        self._refused = 0

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request that was answered; `route` is the pattern of its path, not the path."""
        known = method if method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH") else OTHER
        with self._lock:
            self._requests[(("method", known), ("route", route), ("status", str(status)))] += 1
            self._seconds[(("route", route),)].observe(seconds)

    def click(self, latencies: Mapping[str, float]) -> None:
        """A click that was answered: seconds per stage, as its reply says them."""
        with self._lock:
            for stage, seconds in latencies.items():
                self._stages[(("stage", stage),)].observe(seconds)

    def refused(self) -> None:
        """A request or a sign-in without a good token."""
        with self._lock:
            self._refused += 1

    def text(self) -> str:
        """Everything, as Prometheus reads it."""
        gauges = self._gauges()
        with self._lock:
            lines = [
                *_family("ctsam3d_requests_total", "counter", self._requests.items()),
                *_family("ctsam3d_refused_total", "counter", [((), self._refused)]),
                *_histograms("ctsam3d_request_seconds", self._seconds),
                *_histograms("ctsam3d_click_seconds", self._stages),
            ]
        for name, values in gauges.items():
            lines += _family(name, "gauge", values.items())
        return "\n".join(lines) + "\n"


def _family(name: str, kind: str, values: Iterable[tuple[Labels, float]]) -> list[str]:
    return [f"# TYPE {name} {kind}", *(f"{name}{_labels(labels)} {value}" for labels, value in values)]


def _histograms(name: str, histograms: Mapping[Labels, _Histogram]) -> list[str]:
    lines = [f"# TYPE {name} histogram"]
    for labels, histogram in histograms.items():
        total = 0
        for bound, count in zip((*SECONDS, "+Inf"), histogram.counts):
            total += count
            lines.append(f"{name}_bucket{_labels((*labels, ('le', str(bound))))} {total}")
        lines += [f"{name}_sum{_labels(labels)} {histogram.sum}", f"{name}_count{_labels(labels)} {total}"]
    return lines


def _labels(labels: Labels) -> str:
    def escaped(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return "{" + ",".join(f'{name}="{escaped(value)}"' for name, value in labels) + "}" if labels else ""
