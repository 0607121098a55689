"""The figures of a server in Prometheus's text form: no prompts, no ids, no names of keys."""

from collections.abc import Iterable
from typing import Any

from mova_engine.serving.job_store import JobStore

KIND = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class ServiceMetrics:
    """Counts requests; jobs are counted in the store when somebody asks."""

    def __init__(self, store: JobStore) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self._requests = Counter("mova_http_requests", "Requests that were answered", labels, registry=self.registry)
        self._seconds = Histogram(
            "mova_http_request_seconds",
            "Seconds until an answer began",
            ("method", "route"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._bytes = Counter("mova_content_bytes", "Bytes of files that were asked for", registry=self.registry)
        self.registry.register(_Jobs(store))

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request. route: its pattern, never its path."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def sent(self, count: int) -> None:
        """Count bytes of files."""
        self._bytes.inc(count)

    def text(self) -> bytes:
        """All figures."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


class _Jobs:
    """Jobs by state, counted when they are asked for."""

    def __init__(self, store: JobStore) -> None:
        self._store = store

    def describe(self) -> Iterable[Any]:
        """Nothing: so that registering asks for no count."""
        return ()

    def collect(self) -> Iterable[Any]:
        """The counts."""
        from prometheus_client.core import GaugeMetricFamily

        family = GaugeMetricFamily("mova_jobs", "Jobs in the store", labels=("status",))
        for status, count in self._store.counts().items():
            family.add_metric((status,), count)
        return (family,)
