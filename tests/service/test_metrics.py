"""The metrics: complete, named as Prometheus wants, and no more of them whatever a client sends."""

import subprocess
from pathlib import Path

import httpx
import pytest

from compressor.artifact.manifest import Quality
from service.engine.models import LoadedModel, report
from service.http.app import create_app
from service.metrics import Metrics
from service.settings import Settings
from tests.tools import debian_program

NAMES = {
    *("num_requests_running", "num_requests_waiting", "kv_cache_usage_ratio", "batch_size", "decode_steps"),
    *("spec_decode_num_drafts", "spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens"),
    "spec_decode_num_accepted_tokens_per_pos",
    *("prompt_tokens", "generation_tokens", "request_success", "requests_rejected", "http_requests"),
    *("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"),
    *("request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds"),
    *("request_prompt_tokens", "request_generation_tokens"),
    *("model_info", "model_weight_bytes", "model_dense_equivalent_bytes", "model_artifact_bytes", "model_quality"),
    *("model_load_seconds", "core_contraction_seconds", "kv_cache_bytes", "memory_rss_bytes", "compute_threads"),
}
REASONS = {"queue_full", "queue_tokens", "queue_bytes", "draining", "too_large", "invalid", "unauthorized"}


def series(client: httpx.Client) -> set[str]:
    """Return every series that is exported, without its value."""
    lines = client.get("/metrics").text.splitlines()
    return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}


def test_the_list_is_complete() -> None:
    assert {f"ttgpt_{name}" for name in NAMES} <= {metric.name for metric in Metrics().registry.collect()}


def test_every_app_has_a_registry_of_its_own(settings: Settings) -> None:
    first, second = (create_app(settings).state.service.engine.metrics.registry for _ in range(2))
    assert first is not second


def test_promtool_finds_nothing_wrong(client: httpx.Client) -> None:
    promtool = debian_program("promtool", "prometheus")
    text = client.get("/metrics").content
    run = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"")


def test_every_counter_begins_at_0(client: httpx.Client) -> None:
    """A rate of a series that appears with its first event misses that event."""
    found = series(client)
    assert {f'ttgpt_requests_rejected_total{{reason="{reason}"}}' for reason in REASONS} <= found
    for name in ("tiny-fp32", "tiny-int8"):
        assert f'ttgpt_time_to_first_token_seconds_count{{model_name="{name}"}}' in found
        assert f'ttgpt_core_contraction_seconds_count{{model_name="{name}",op="head"}}' in found


def _scan(client: httpx.Client, seed: int) -> None:
    """Send what a scanner sends: other paths, methods, names, headers and bodies for every seed."""
    for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", f"X{seed}"):
        client.request(method, f"/wp-admin/{seed}/../{method}?id={seed}", headers={"x-scan": str(seed)})
        client.request(method, "/generate", content=f"<{seed}>")
    for path in ("/generate", "/generate_stream", "/", "/embeddings"):
        client.post(path, json={"inputs": "x", "model": f"no-{seed}"})
        client.post(path, json={"inputs": "x", f"field{seed}": seed})


def test_a_scanner_makes_no_new_series(client: httpx.Client) -> None:
    _scan(client, 0)
    before = series(client)
    for seed in range(1, 6):
        _scan(client, seed)
    assert series(client) == before


@pytest.mark.parametrize("known", [True, False])
def test_quality_that_was_not_measured_is_left_out(tiny: LoadedModel, known: bool) -> None:
    unknown = dict.fromkeys(("dense_perplexity", "perplexity_ratio", "kl", "top1_agreement"))
    quality = tiny.manifest.quality.model_dump() | ({} if known else unknown)
    manifest = tiny.manifest.model_copy(update={"quality": Quality(**quality)})
    metrics = Metrics()
    report(LoadedModel(**{**vars(tiny), "manifest": manifest}), metrics)
    exported = {s.labels["metric"] for m in metrics.registry.collect() for s in m.samples if "quality" in s.name}
    assert exported == {"perplexity"} | ({"perplexity_ratio", "kl", "top1_agreement"} if known else set())


def test_the_files_of_the_system_are_somebody_elses_choice(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/statm").write_text("9 2 0 0 0 0 0\n")
    assert Metrics(tmp_path).registry.get_sample_value("ttgpt_memory_rss_bytes") == 2 * 4096
