"""Every metric that dashboards, alerts and other people's queries rely on: its name, type, labels and ladder."""

from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from service.engine.engine import Engine
from service.metrics import Metrics
from service.settings import Settings
from tests.deploy.control_group import write_group
from tests.service.conftest import artifacts, serving

__all__ = ["artifacts"]

MODEL = {"model_name"}
GAUGES: Mapping[str, set[str]] = {
    "num_requests_running": MODEL,
    "num_requests_waiting": MODEL,
    "kv_cache_usage_ratio": MODEL,
    "batch_size": MODEL,
    "model_info": MODEL | {"revision", "method", "source"},
    "model_weight_bytes": MODEL | {"component", "form"},
    "model_dense_equivalent_bytes": MODEL | {"component"},
    "model_artifact_bytes": MODEL,
    "model_quality": MODEL | {"metric", "text"},
    "model_load_seconds": MODEL | {"phase"},
    "kv_cache_bytes": set(),
    "memory_rss_bytes": set(),
    "cgroup_memory_current_bytes": set(),
    "cgroup_memory_limit_bytes": set(),
    "cgroup_memory_inactive_file_bytes": set(),
    "compute_threads": set(),
    "core_cache_bytes": set(),
    "core_cache_breaker_open": set(),
}
COUNTERS: Mapping[str, set[str]] = {
    "prompt_tokens": MODEL,
    "generation_tokens": MODEL,
    "decode_steps": MODEL,
    "num_preemptions": MODEL,
    "prefix_cache_queries": MODEL,
    "prefix_cache_hits": MODEL,
    "spec_decode_num_drafts": MODEL,
    "spec_decode_num_draft_tokens": MODEL,
    "spec_decode_num_accepted_tokens": MODEL,
    "spec_decode_num_accepted_tokens_per_pos": MODEL | {"position"},
    "request_success": MODEL | {"finished_reason"},
    "requests_rejected": {"reason"},
    "http_requests": {"handler", "method", "status"},
    "core_cache_requests": {"tier", "result"},
    "answer_cache_requests": {"tier", "result"},
    "cgroup_cpu_periods": set(),
    "cgroup_cpu_throttled_periods": set(),
}
LADDER = ".001 .005 .01 .02 .04 .06 .08 .1 .25 .5 .75 1 2.5 5 7.5 10 20 40 80 160"
HISTOGRAMS: Mapping[str, tuple[set[str], str | None]] = {
    "time_to_first_token_seconds": (MODEL, LADDER),
    "inter_token_latency_seconds": (MODEL, LADDER),
    "e2e_request_latency_seconds": (MODEL, LADDER),
    "request_queue_time_seconds": (MODEL, LADDER),
    "request_prefill_time_seconds": (MODEL, LADDER),
    "request_decode_time_seconds": (MODEL, LADDER),
    "request_prompt_tokens": (MODEL, "1 2 5 10 20 50 100 200 500 1000 2000"),
    "request_generation_tokens": (MODEL, "1 2 5 10 20 50 100 200 500 1000 2000"),
    "core_contraction_seconds": (MODEL | {"op"}, None),
    "core_cache_operation_seconds": ({"tier", "op"}, None),
}
VALUES = {
    ("request_success", "finished_reason"): {"stop", "length", "abort"},
    ("spec_decode_num_accepted_tokens_per_pos", "position"): {"0", "1", "2", "3", "4"},
    ("requests_rejected", "reason"): {
        *("queue_full", "queue_tokens", "queue_bytes", "draining", "too_large", "invalid", "unauthorized"),
    },
    ("model_weight_bytes", "component"): {"wte", "wpe", "attn", "mlp", "norm"},
    ("model_weight_bytes", "form"): {"disk", "resident"},
    ("core_contraction_seconds", "op"): {"rows", "head"},
    ("core_cache_requests", "tier"): {"local", "redis"},
    ("core_cache_requests", "result"): {"hit", "miss", "error", "bypass"},
    ("core_cache_operation_seconds", "tier"): {"local", "redis"},
    ("model_quality", "metric"): {"perplexity", "perplexity_ratio", "kl", "top1_agreement"},
}


@pytest.fixture(scope="module")
def families(artifacts: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Metric]:
    root = tmp_path_factory.mktemp("root")
    write_group(root, 1)
    settings = Settings(models=tuple(artifacts), threads=1, draft_model=Path("tiny-int8"))
    with serving(settings, Engine(settings, Metrics(root))) as client:
        _use(client)
        text = client.get("/metrics").text
    families = {family.name.removeprefix("ttgpt_"): family for family in text_string_to_metric_families(text)}
    return {name: family for name, family in families.items() if not name.endswith("_created")}  # the library's own


def _use(client: httpx.Client) -> None:
    body = {"inputs": "The sea", "parameters": {"max_new_tokens": 3}}
    for model in ("tiny-fp32", "tiny-int8"):
        assert client.post("/generate", json={**body, "model": model}).status_code == 200


def _labels(family: Metric) -> set[str]:
    """Return the labels of all samples, of which each must have all."""
    (found,) = {frozenset(sample.labels) - {"le"} for sample in family.samples}
    return set(found)


def test_the_list_is_complete(families: dict[str, Metric]) -> None:
    assert families.keys() == GAUGES.keys() | COUNTERS.keys() | HISTOGRAMS.keys()


@pytest.mark.parametrize("name", GAUGES)
def test_gauges(families: dict[str, Metric], name: str) -> None:
    assert (families[name].type, _labels(families[name])) == ("gauge", GAUGES[name])


@pytest.mark.parametrize("name", COUNTERS)
def test_counters(families: dict[str, Metric], name: str) -> None:
    assert (families[name].type, _labels(families[name])) == ("counter", COUNTERS[name])
    assert {sample.name for sample in families[name].samples} == {f"ttgpt_{name}_total"}


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_histograms(families: dict[str, Metric], name: str) -> None:
    labels, ladder = HISTOGRAMS[name]
    assert (families[name].type, _labels(families[name])) == ("histogram", labels)
    bounds = sorted({float(sample.labels["le"]) for sample in families[name].samples if "le" in sample.labels})
    assert ladder is None or bounds == [*map(float, ladder.split()), float("inf")]


@pytest.mark.parametrize(("name", "label"), VALUES)
def test_values_of_labels(families: dict[str, Metric], name: str, label: str) -> None:
    assert {sample.labels[label] for sample in families[name].samples} == VALUES[name, label]


def test_every_status_is_a_class_and_every_handler_a_template(families: dict[str, Metric]) -> None:
    seen = [sample.labels for sample in families["http_requests"].samples]
    assert {(labels["handler"], labels["status"]) for labels in seen} >= {("/generate", "2xx")}
