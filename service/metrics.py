"""Every metric, with the names of vLLM behind the prefix `ttgpt_`. No label comes from a client."""

import time
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.process.collector import ProcessCollector

SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5),
    *(0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160),
)
PRODUCTS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
FINISHED = ("stop", "length", "abort")
TIERS = ("local", "redis")
RESULTS = ("hit", "miss", "error", "bypass")
CONTRACTIONS = ("rows", "head")
REJECTED = ("queue_full", "queue_tokens", "queue_bytes", "draining", "too_large", "invalid", "unauthorized")


class Metrics:
    """The metrics of one app, in a registry of their own.

    Args:
        root: where /proc and /sys are.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(ProcessCollector(root))
        self._per_model: list[Histogram] = []
        self._add_model_metrics()
        self._add_request_metrics()
        self._add_latencies()
        self._add_engine_metrics()
        self._add_speculation_metrics()
        self._add_cache_metrics()
        for reason in REJECTED:
            self.requests_rejected.labels(reason)

    def _add_model_metrics(self) -> None:
        per_model = ["model_name"]
        self.model_info = self._gauge(
            "model_info", "The loaded models; always 1.", [*per_model, "revision", "method", "source"]
        )
        self.model_weight_bytes = self._gauge(
            "model_weight_bytes",
            "Bytes of the weights by component, on disk and resident while serving.",
            [*per_model, "component", "form"],
        )
        self.model_dense_equivalent_bytes = self._gauge(
            "model_dense_equivalent_bytes",
            "Bytes of the same component in a dense fp32 model.",
            [*per_model, "component"],
        )
        self.model_artifact_bytes = self._gauge(
            "model_artifact_bytes", "Bytes of all files of the artefact.", per_model
        )
        self.model_quality = self._gauge(
            "model_quality", "Quality measured when the artefact was made.", [*per_model, "metric", "text"]
        )
        self.model_load_seconds = self._gauge(
            "model_load_seconds", "Time that loading took, by phase.", [*per_model, "phase"]
        )

    def _add_request_metrics(self) -> None:
        per_model = ["model_name"]
        self.num_requests_running = self._gauge("num_requests_running", "Requests being worked on.", per_model)
        self.num_requests_waiting = self._gauge("num_requests_waiting", "Requests waiting for a slot.", per_model)
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts processed.", per_model)
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated.", per_model)
        self.request_success = self._counter(
            "request_success", "Generation requests that ended without an error.", [*per_model, "finished_reason"]
        )
        self.requests_rejected = self._counter("requests_rejected", "Requests refused, by reason.", ["reason"])
        self.http_requests = self._counter(
            "http_requests", "HTTP requests by route template and class of status.", ["handler", "method", "status"]
        )

    def _add_engine_metrics(self) -> None:
        per_model = ["model_name"]
        self.batch_size = self._gauge("batch_size", "Requests that shared the last step.", per_model)
        self.decode_steps = self._counter(
            "decode_steps", "Steps that gave a token to every running request.", per_model
        )
        self.kv_cache_bytes = self._gauge("kv_cache_bytes", "Bytes that keys and values may occupy together.", [])
        self.kv_cache_usage_ratio = self._gauge(
            "kv_cache_usage_ratio", "Share of these that running requests hold.", per_model
        )
        self.num_preemptions = self._counter(
            "num_preemptions", "Requests that were sent back to wait, for lack of room in the KV cache.", per_model
        )
        self.prefix_cache_queries = self._counter(
            "prefix_cache_queries", "Tokens of prompts that were looked for in the KV cache.", per_model
        )
        self.prefix_cache_hits = self._counter(
            "prefix_cache_hits", "Tokens that were found there, and so not read again.", per_model
        )
        self.compute_threads = self._gauge("compute_threads", "Threads of one matrix product.", [])

    def _add_speculation_metrics(self) -> None:
        per_model = ["model_name"]
        self.drafts = self._counter("spec_decode_num_drafts", "Times that tokens were proposed for a text.", per_model)
        self.draft_tokens = self._counter("spec_decode_num_draft_tokens", "Tokens proposed.", per_model)
        self.accepted_tokens = self._counter(
            "spec_decode_num_accepted_tokens", "Proposed tokens that were the model's own.", per_model
        )
        self.accepted_tokens_per_pos = self._counter(
            "spec_decode_num_accepted_tokens_per_pos",
            "Proposed tokens that were the model's own, by their place among those proposed together.",
            [*per_model, "position"],
        )

    def _add_cache_metrics(self) -> None:
        self.core_contraction = Histogram(
            "ttgpt_core_contraction_seconds",
            "Contracting cores: rows of the token table that no cache had, and rows of one step with the head's cores.",
            ["model_name", "op"],
            registry=self.registry,
            buckets=PRODUCTS,
        )
        results = ["tier", "result"]
        self.core_cache_requests = self._counter(
            "core_cache_requests", "Contracted values looked for in a tier of the cache, by result.", results
        )
        self.answer_cache_requests = self._counter(
            "answer_cache_requests", "Answers looked for in a tier of the cache, by result.", results
        )
        self.core_cache_operation = Histogram(
            "ttgpt_core_cache_operation_seconds",
            "Operations of a tier of the cache, each of many values.",
            ["tier", "op"],
            registry=self.registry,
            buckets=PRODUCTS,
        )
        self.core_cache_bytes = self._gauge("core_cache_bytes", "Bytes of the cache in this process.", [])
        self.core_cache_breaker_open = self._gauge(
            "core_cache_breaker_open", "1 while Redis is not asked because it does not answer.", []
        )
        for tier in TIERS:
            self.core_cache_operation.labels(tier, "get")
            for result in RESULTS:
                self.core_cache_requests.labels(tier, result)
                self.answer_cache_requests.labels(tier, result)

    def _add_latencies(self) -> None:
        self.time_to_first_token = self._histogram("time_to_first_token_seconds", "From arrival to the first token.")
        self.inter_token_latency = self._histogram("inter_token_latency_seconds", "Between two tokens of a request.")
        self.e2e_request_latency = self._histogram("e2e_request_latency_seconds", "From arrival to the last token.")
        self.request_queue_time = self._histogram("request_queue_time_seconds", "Waiting for a slot.")
        self.request_prefill_time = self._histogram("request_prefill_time_seconds", "From the slot to the first token.")
        self.request_decode_time = self._histogram("request_decode_time_seconds", "From the first token to the last.")
        self.request_prompt_tokens = self._histogram("request_prompt_tokens", "Tokens of a prompt.", TOKENS)
        self.request_generation_tokens = self._histogram(
            "request_generation_tokens", "Tokens generated for a request.", TOKENS
        )

    def start_counters(self, name: str) -> None:
        """Start all counters of a model at 0."""
        for gauge in (self.num_requests_running, self.num_requests_waiting):
            gauge.labels(name)
        tokens = (self.prompt_tokens, self.generation_tokens, self.prefix_cache_queries, self.prefix_cache_hits)
        for counter in (*tokens, self.decode_steps, self.num_preemptions):
            counter.labels(name)
        for reason in FINISHED:
            self.request_success.labels(name, reason)
        for histogram in self._per_model:
            histogram.labels(name)
        for op in CONTRACTIONS:
            self.core_contraction.labels(name, op)

    def start_speculation(self, name: str, most: int) -> None:
        """Start the counters of a model that has a draft, which proposes at most `most` tokens at a time, at 0."""
        for counter in (self.drafts, self.draft_tokens, self.accepted_tokens):
            counter.labels(name)
        for position in range(most):
            self.accepted_tokens_per_pos.labels(name, str(position))

    def head_seconds(self, name: str, *, contracted: bool) -> Histogram:
        """Return what times the rows of one step with a model's head; exported only if its cores are contracted."""
        if contracted:
            return self.core_contraction.labels(name, "head")
        return Histogram("not_exported", "Products with a head that has no cores.", registry=None)

    def _gauge(self, name: str, text: str, labels: list[str]) -> Gauge:
        return Gauge(f"ttgpt_{name}", text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, labels: list[str]) -> Counter:
        return Counter(f"ttgpt_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, ladder: tuple[float, ...] = SECONDS) -> Histogram:
        made = Histogram(f"ttgpt_{name}", text, ["model_name"], registry=self.registry, buckets=ladder)
        self._per_model.append(made)
        return made


class RequestClock:
    """Measures one generation request from its arrival to its end."""

    def __init__(self, metrics: Metrics, model_name: str) -> None:
        self._metrics = metrics
        self._model_name = model_name
        self._inter_token_latency = metrics.inter_token_latency.labels(model_name)  # looking them up takes longer
        self._generation_tokens = metrics.generation_tokens.labels(model_name)  # than using them
        self._arrived = self._admitted = self._first = self._latest = time.monotonic()
        self._tokens = 0

    def started(self) -> None:
        """It got a slot, perhaps not for the first time."""
        if self._admitted != self._arrived:
            return
        self._admitted = time.monotonic()
        self._observe(self._metrics.request_queue_time, self._admitted - self._arrived)

    def token(self) -> None:
        """A token was generated."""
        now, metrics = time.monotonic(), self._metrics
        if self._tokens:
            self._inter_token_latency.observe(now - self._latest)
        else:
            self._first = now
            self._observe(metrics.time_to_first_token, now - self._arrived)
            self._observe(metrics.request_prefill_time, now - self._admitted)
        self._tokens += 1
        self._latest = now
        self._generation_tokens.inc()

    def finished(self, reason: str, prompt_tokens: int) -> None:
        """The last token was generated, or the prompt is scored and nothing more was wanted."""
        metrics = self._metrics
        if self._tokens:
            self._observe(metrics.request_decode_time, self._latest - self._first)
        else:
            self._latest = time.monotonic()
            self._observe(metrics.request_prefill_time, self._latest - self._admitted)
        self._observe(metrics.e2e_request_latency, self._latest - self._arrived)
        self._observe(metrics.request_prompt_tokens, prompt_tokens)
        self._observe(metrics.request_generation_tokens, self._tokens)
        metrics.prompt_tokens.labels(self._model_name).inc(prompt_tokens)
        metrics.request_success.labels(self._model_name, reason).inc()

    def replayed(self, reason: str) -> None:
        """The answer was remembered: nothing was generated, and nothing took time."""
        self._metrics.request_success.labels(self._model_name, reason).inc()

    @property
    def arrived_seconds(self) -> float:
        """When the request was understood, on the clock of time.monotonic."""
        return self._arrived

    @property
    def queue_seconds(self) -> float:
        """From arrival to a slot."""
        return self._admitted - self._arrived

    @property
    def inference_seconds(self) -> float:
        """From the slot to the latest token."""
        return self._latest - self._admitted

    def aborted(self) -> None:
        """The client went away."""
        self._metrics.request_success.labels(self._model_name, "abort").inc()

    def _observe(self, histogram: Histogram, value: float) -> None:
        histogram.labels(self._model_name).observe(value)
