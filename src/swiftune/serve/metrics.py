"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The counters of one server.

    Args:
        load: how many answers are being written, and how many wait.
    """

    def __init__(self, load: Callable[[], tuple[int, int]]) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        running = Gauge("swiftune_running", "Answers that are being written.", registry=registry)
        running.set_function(lambda: load()[0])
        waiting = Gauge("swiftune_waiting", "Answers that wait for their turn.", registry=registry)
        waiting.set_function(lambda: load()[1])
        self.requests = Counter("swiftune_requests", "Requests by status.", ["path", "status"], registry=registry)
        self.left = Counter("swiftune_clients_left", "Requests whose client left early.", registry=registry)
        self.prompt_tokens = Counter("swiftune_prompt_tokens", "Tokens read.", registry=registry)
        self.answer_tokens = Counter("swiftune_answer_tokens", "Tokens written.", registry=registry)
        self.cache = Counter("swiftune_cache", "Greedy requests by what the cache had.", ["found"], registry=registry)
        self.first_token = Histogram(
            "swiftune_first_token_seconds", "From a request to its first token.", registry=registry, buckets=_SECONDS
        )
        self.answer = Histogram(
            "swiftune_answer_seconds", "From a request to its last token.", registry=registry, buckets=_SECONDS
        )

    def page(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)
