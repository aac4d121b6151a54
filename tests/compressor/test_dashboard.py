"""The picture of a running service's metrics."""

import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from compressor.dashboard import draw, fetch, read

TEXT = """# TYPE ttgpt_model_weight_bytes gauge
ttgpt_model_weight_bytes{model_name="small",component="wte",form="disk"} 2e6
ttgpt_model_weight_bytes{model_name="small",component="mlp",form="disk"} 1e6
ttgpt_model_weight_bytes{model_name="small",component="wte",form="resident"} 4e6
ttgpt_model_weight_bytes{model_name="edited",component="wte",form="disk"} 5e6
# TYPE ttgpt_model_dense_equivalent_bytes gauge
ttgpt_model_dense_equivalent_bytes{model_name="small",component="wte"} 8e6
ttgpt_model_dense_equivalent_bytes{model_name="small",component="mlp"} 4e6
ttgpt_model_dense_equivalent_bytes{model_name="edited",component="wte"} 8e6
# TYPE ttgpt_model_quality gauge
ttgpt_model_quality{model_name="small",metric="perplexity_ratio",text="a.txt"} 1.25
ttgpt_model_quality{model_name="edited",metric="perplexity",text="a.txt"} 30
# TYPE ttgpt_kv_cache_bytes gauge
ttgpt_kv_cache_bytes{model_name="small"} 7e6
# TYPE ttgpt_core_contraction_seconds histogram
ttgpt_core_contraction_seconds_count{model_name="small",op="head"} 4
ttgpt_core_contraction_seconds_sum{model_name="small",op="head"} 0.002
ttgpt_core_contraction_seconds_count{model_name="small",op="rows"} 0
ttgpt_core_contraction_seconds_sum{model_name="small",op="rows"} 0
# TYPE ttgpt_core_cache_bytes gauge
ttgpt_core_cache_bytes 3e6
# TYPE ttgpt_memory_rss_bytes gauge
ttgpt_memory_rss_bytes 9e7
"""


class Answer(BaseHTTPRequestHandler):
    """Answers /metrics."""

    def do_GET(self) -> None:
        found = self.path == "/metrics"
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(TEXT.encode() if found else b"")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/metrics"
        server.shutdown()
        thread.join()


def test_what_the_metrics_say() -> None:
    snapshot = read(TEXT)
    small = snapshot.models["small"]
    assert (small.size, small.resident, small.dense, small.kv_cache) == (3e6, 4e6, 12e6, 7e6)
    assert small.quality == {"perplexity_ratio": 1.25}
    assert (small.contraction_ms("head"), small.contraction_ms("rows")) == (0.5, 0)
    assert snapshot.models["edited"].contraction_ms("head") == 0
    assert snapshot.memory == {"memory_rss": 9e7, "core_cache": 3e6}


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_the_picture_is_there_whole(tmp_path: Path, name: str, begins: bytes) -> None:
    draw(read(TEXT), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begins)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_models_without_a_dense_one_to_compare_with_are_drawn_too(tmp_path: Path) -> None:
    draw(
        read("\n".join(line for line in TEXT.splitlines() if "perplexity_ratio" not in line) + "\n"), tmp_path / "a.png"
    )


def test_a_format_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="xyz"):
        draw(read(TEXT), tmp_path / "a.xyz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "hint"),
    [("", "no model"), ("# TYPE up gauge\nup 1\n", "no model"), ("<html>\n", "url: these are not metrics")],
)
def test_metrics_of_somebody_else(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        read(text)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/metrics", "metrics", "http://127.0.0.1:9/metrics"])
def test_urls_that_do_not_lead_to_metrics(url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        fetch(url)


def test_the_address_of_a_service_will_do(url: str) -> None:
    assert fetch(url.removesuffix("/metrics")) == fetch(url.removesuffix("metrics")) == TEXT


def test_the_command(url: str, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "compressor", "dashboard", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    png = tmp_path / "a.png"
    drawn = run("--url", url, "--png", str(png))
    assert (drawn.returncode, drawn.stderr) == (0, "")
    assert png.read_bytes().startswith(b"\x89PNG")
    for arguments in (["--url", url], ["--url", f"{url}/x", "--png", f"{png}2"]):
        refused = run(*arguments, *([] if "--png" in arguments else ["--png", str(png)]))
        assert refused.returncode == 2
        assert len(refused.stderr.splitlines()) == 1
