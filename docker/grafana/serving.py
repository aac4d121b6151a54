"""Serving: how much, how fast, how full."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row
from panels import Text, board, lines, number

M = 'model_name=~"$model"'
ANY_IS_BAD = ((None, "green"), (0.001, "red"))
SOME_IS_GOOD = ((None, "yellow"), (1, "green"))
RATE = "[$__rate_interval]"


def dashboard() -> Dashboard:
    """Return the dashboard."""
    made = board("Serving", "ttgpt-serving", "Rates, latencies, queue, cache and CPU of the service.")
    for part in (_overview, _rates, _latencies, _queue, _cache, _cpu):
        part(made)
    return made


def _per_model(metric: str, by: str = "model_name") -> str:
    return f"sum by ({by}) (rate(ttgpt_{metric}{{{M}}}{RATE}))"


def _overview(made: Dashboard) -> None:
    replicas = Text(
        title="Replicas", description="That answer Prometheus.", unit="short", steps=((None, "red"), (1, "green"))
    )
    made.with_panel(number(replicas, 6, 'sum(up{job="ttgpt"})'))
    tokens = Text(
        title="Tokens per second",
        description="Generated, by all chosen models; yellow is idle.",
        unit="short",
        steps=SOME_IS_GOOD,
    )
    made.with_panel(number(tokens, 6, f"sum(rate(ttgpt_generation_tokens_total{{{M}}}{RATE}))"))
    waiting = Text(
        title="Waiting",
        description="Requests without a slot, now.",
        unit="short",
        steps=((None, "green"), (1, "yellow"), (64, "red")),
    )
    made.with_panel(number(waiting, 6, f"sum(ttgpt_num_requests_waiting{{{M}}})"))
    shed = Text(
        title="Refused for lack of room",
        description="Share of requests that were answered 429 in five minutes; above 5 % an alert fires.",
        unit="percentunit",
        steps=((None, "green"), (0.05, "red")),
    )
    made.with_panel(number(shed, 6, "max(job:ttgpt_requests_shed:ratio_rate5m)"))


def _rates(made: Dashboard) -> None:
    made.with_row(Row("Rates"))
    text = Text(
        title="Requests",
        description="Answers per second by route and class of status. Red are our failures; above 1 % an alert fires.",
        unit="reqps",
        steps=ANY_IS_BAD,
        bad="5xx",
    )
    by_route = f"sum by (handler, status) (rate(ttgpt_http_requests_total{RATE}))"
    made.with_panel(lines(text, 8, __handler__status=by_route))
    text = Text(
        title="Tokens", description="Read (prompts) and generated per second.", unit="short", steps=SOME_IS_GOOD
    )
    made.with_panel(
        lines(
            text,
            8,
            read__model_name=_per_model("prompt_tokens_total"),
            generated__model_name=_per_model("generation_tokens_total"),
        )
    )
    text = Text(
        title="How generations end",
        description="stop: the text was over; length: the bound on tokens; abort: the client went away (red).",
        unit="reqps",
        steps=ANY_IS_BAD,
        bad="abort",
    )
    ended = _per_model("request_success_total", "model_name, finished_reason")
    made.with_panel(lines(text, 8, __model_name__finished_reason=ended))


def _latencies(made: Dashboard) -> None:
    made.with_row(Row("Latencies"))
    for metric, title, description, limit in (
        ("time_to_first_token_seconds", "Time to first token", "From arrival; above 2.5 s at p95 an alert fires.", 2.5),
        ("inter_token_latency_seconds", "Between tokens", "Of one request; readers follow at some 0.2 s.", 0.2),
        ("e2e_request_latency_seconds", "Whole request", "From arrival to the last token.", 40),
        ("request_queue_time_seconds", "In the queue", "Until a slot was free.", 1),
        ("request_prefill_time_seconds", "Reading the prompt", "From the slot to the first token.", 1),
        ("request_decode_time_seconds", "Writing", "From the first token to the last.", 40),
    ):
        text = Text(title=title, description=description, unit="s", steps=((None, "green"), (limit, "red")))
        buckets = _per_model(f"{metric}_bucket", "model_name, le")
        quantiles = {f"p{share}__model_name": f"histogram_quantile(0.{share}, {buckets})" for share in (50, 95)}
        made.with_panel(lines(text, 8, **quantiles))


def _queue(made: Dashboard) -> None:
    made.with_row(Row("Queue and batch"))
    text = Text(
        title="Requests",
        description="Being worked on, and waiting for a slot; waiting for five minutes fires an alert. Yellow is "
        "TTGPT_MAX_BATCH, red TTGPT_MAX_WAITING, at their defaults.",
        unit="short",
        steps=((None, "green"), (64, "yellow"), (128, "red")),
    )
    made.with_panel(
        lines(
            text,
            8,
            running__model_name=f"sum by (model_name) (ttgpt_num_requests_running{{{M}}})",
            waiting__model_name=f"sum by (model_name) (ttgpt_num_requests_waiting{{{M}}})",
        )
    )
    text = Text(
        title="Tokens per step",
        description="Requests that share a step, on average: near TTGPT_MAX_BATCH (64 by default) the batch is full. "
        "More than the latest batch where a draft is right.",
        unit="short",
        steps=((None, "green"), (64, "yellow")),
    )
    steps = _per_model("decode_steps_total")
    mean = f"{_per_model('generation_tokens_total')} / ({steps} > 0)"
    latest = f"max by (model_name) (ttgpt_batch_size{{{M}}})"
    made.with_panel(lines(text, 8, mean__model_name=mean, latest__model_name=latest))
    text = Text(
        title="Refused",
        description="queue_*: overload. invalid, too_large, unauthorized: the client's mistake. draining: stopping. "
        "Red are those for lack of room.",
        unit="reqps",
        steps=ANY_IS_BAD,
        bad="queue_",
    )
    refused = f"sum by (reason) (rate(ttgpt_requests_rejected_total{RATE}))"
    made.with_panel(lines(text, 8, __reason=refused))
    text = Text(
        title="KV cache in use",
        description="Share that running requests hold. When it is full, the youngest are sent back to wait.",
        unit="percentunit",
        steps=((None, "green"), (0.95, "yellow")),
    )
    made.with_panel(lines(text, 8, __model_name=f"max by (model_name) (ttgpt_kv_cache_usage_ratio{{{M}}})"))
    text = Text(
        title="Prompts found in the KV cache",
        description="Share of the tokens of prompts that were not read again, since a text with the same beginning had "
        "been read; and requests per second that were sent back to wait for room.",
        unit="percentunit",
        steps=SOME_IS_GOOD,
    )
    found = f"{_per_model('prefix_cache_hits_total')} / ({_per_model('prefix_cache_queries_total')} > 0)"
    sent_back = _per_model("num_preemptions_total")
    made.with_panel(lines(text, 8, found__model_name=found, sent_back__model_name=sent_back))
    text = Text(
        title="Proposed by a draft",
        description="Tokens per second that a draft proposed, and those of them that were the model's own. None "
        "without TTGPT_DRAFT_MODEL, in batches above 2, or where proposals do not pay.",
        unit="short",
        steps=SOME_IS_GOOD,
    )
    made.with_panel(
        lines(
            text,
            8,
            proposed__model_name=_per_model("spec_decode_num_draft_tokens_total"),
            accepted__model_name=_per_model("spec_decode_num_accepted_tokens_total"),
        )
    )
    for metric, title in (("prompt", "Length of prompts"), ("generation", "Length of continuations")):
        text = Text(
            title=title,
            description="Half of the requests have at most so many tokens, 95 % at most. Yellow is the context of "
            "gpt2-mini, red that of GPT-2.",
            unit="short",
            steps=((None, "green"), (512, "yellow"), (1024, "red")),
        )
        buckets = _per_model(f"request_{metric}_tokens_bucket", "model_name, le")
        quantiles = {f"p{share}__model_name": f"histogram_quantile(0.{share}, {buckets})" for share in (50, 95)}
        made.with_panel(lines(text, 8, **quantiles))


def _cache(made: Dashboard) -> None:
    made.with_row(Row("Cache of contractions"))
    text = Text(
        title="Values asked for",
        description="Contracted values looked for per second, by tier and result. bypass: contracting is "
        "faster, as measured; error (red): it was contracted instead.",
        unit="reqps",
        steps=ANY_IS_BAD,
        bad="error",
    )
    asked = f"sum by (tier, result) (rate(ttgpt_core_cache_requests_total{RATE}))"
    made.with_panel(lines(text, 6, __tier__result=asked))
    text = Text(
        title="Answers asked for",
        description="Whole answers looked for per second, where TTGPT_CACHE_ANSWERS is on. Red are failures of Redis.",
        unit="reqps",
        steps=ANY_IS_BAD,
        bad="error",
    )
    answers = f"sum by (tier, result) (rate(ttgpt_answer_cache_requests_total{RATE}))"
    made.with_panel(lines(text, 6, __tier__result=answers))
    text = Text(
        title="How long it takes",
        description="Mean time by tier and operation; Redis is given up after 50 ms.",
        unit="s",
        steps=((None, "green"), (0.05, "red")),
    )
    seconds = f"sum by (tier, op) (rate(ttgpt_core_cache_operation_seconds_sum{RATE}))"
    count = f"sum by (tier, op) (rate(ttgpt_core_cache_operation_seconds_count{RATE}))"
    made.with_panel(lines(text, 5, __tier__op=f"{seconds} / {count}"))
    text = Text(
        title="Size",
        description="Bytes in the process's own tier; yellow is TTGPT_CACHE_BYTES at its default.",
        unit="decbytes",
        steps=((None, "green"), (64 << 20, "yellow")),
    )
    made.with_panel(lines(text, 4, __instance="sum by (instance) (ttgpt_core_cache_bytes)"))
    text = Text(
        title="Breaker",
        description="1: Redis is not asked, because it failed; every replica contracts for itself.",
        unit="short",
        steps=((None, "green"), (1, "red")),
    )
    made.with_panel(number(text, 3, "max by (instance) (ttgpt_core_cache_breaker_open)", "{{instance}}").height(8))


def _cpu(made: Dashboard) -> None:
    made.with_row(Row("CPU"))
    text = Text(
        title="Threads",
        description="Of one matrix product: the cores of the quota, rounded down.",
        unit="short",
        steps=((None, "red"), (1, "green")),
    )
    made.with_panel(lines(text, 12, __instance="ttgpt_compute_threads"))
    text = Text(
        title="Throttled",
        description="Share of periods in which the quota was used up and everything stood still; above 25 % an alert "
        "fires. Empty where there is no quota.",
        unit="percentunit",
        steps=((None, "green"), (0.25, "red")),
    )
    made.with_panel(lines(text, 12, __instance="instance:ttgpt_cgroup_cpu_throttled:ratio_rate5m"))
