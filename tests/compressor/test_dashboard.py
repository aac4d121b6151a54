"""The picture of a running service's metrics."""

import itertools
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from matplotlib.colors import to_hex

from compressor.dashboard import draw, fetch, picture, read

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


def _metrics(**models: tuple[float, float, int]) -> str:
    """Return what a service would say of models with so many MB of 40, such perplexity and so many contractions."""
    lines = []
    for name, (size, ratio, contractions) in models.items():
        labels = f'model_name="{name}"'
        half = size / 2 * 1e6
        lines += [
            f'ttgpt_model_weight_bytes{{{labels},component="{part}",form="disk"}} {half}' for part in ("wte", "mlp")
        ]
        lines += [
            f'ttgpt_model_dense_equivalent_bytes{{{labels},component="wte"}} 4e7',
            f'ttgpt_model_quality{{{labels},metric="perplexity_ratio",text="a"}} {ratio}',
            f'ttgpt_core_contraction_seconds_count{{{labels},op="head"}} {contractions}',
            f'ttgpt_core_contraction_seconds_sum{{{labels},op="head"}} {0.002 * contractions}',
        ]
    return "\n".join(["# TYPE ttgpt_core_contraction_seconds histogram", *sorted(lines), ""])


MODELS = {"int8": (9.1, 0.9994, 0), "half": (20.0, 1.0, 0), "trains": (11.6, 145.0, 5), "svd": (11.9, 2.5, 0)}


def _panels(text: str) -> dict[str, Any]:
    return {str(axes.get_label()): axes for axes in picture(read(text)).axes}


def test_a_colour_is_a_model_and_nothing_else() -> None:
    panels = _panels(_metrics(**MODELS))
    points, bars = panels["points"], panels["bars"]
    named = {label.get_text(): to_hex(label.get_color()) for label in bars.get_yticklabels()}
    assert named.keys() == MODELS.keys()
    assert len(set(named.values())) == len(named)
    marks = [(*line.get_xydata()[0], to_hex(line.get_color())) for line in points.lines if len(line.get_xdata()) == 1]
    for name, (size, ratio, _) in MODELS.items():
        (label,) = (text for text in points.texts if name in text.get_text().splitlines())
        assert f"{size:.2f} MB" in label.get_text()
        assert to_hex(label.get_color()) == named[name]
        assert (pytest.approx(size), pytest.approx(ratio), named[name]) in marks
    parts = {to_hex(bar.get_facecolor()) for bar in [*bars.patches, *panels["memory"].patches] if bar.get_fill()}
    assert len(parts) >= 3
    assert not parts & set(named.values())


def test_labels_are_apart() -> None:
    points = _panels(_metrics(**MODELS, twin=MODELS["svd"]))["points"]
    points.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in points.texts]
    assert len(boxes) == len(MODELS) + 1  # one for both that are at the same place, and the dense one's
    assert not [1 for one, other in itertools.combinations(boxes, 2) if one.overlaps(other)]


def test_small_differences_are_seen() -> None:
    points = _panels(_metrics(**MODELS))["points"]
    points.figure.draw_without_rendering()
    heights = [points.transData.transform((10, ratio))[1] for ratio in (0.999, 0.9994, 1, 1.0006, 1.01, 2, 145)]
    assert heights == sorted(heights)
    assert min(later - earlier for earlier, later in itertools.pairwise(heights)) > 10  # pixels; a mark has 14


@pytest.mark.parametrize("ratio", [1e-9, 1e300, float("inf"), float("nan")])
def test_any_perplexity_is_drawn(ratio: float, tmp_path: Path) -> None:
    draw(read(_metrics(**MODELS, odd=(5.0, ratio, 0))), tmp_path / "a.png")


def test_only_what_contracts_is_shown_contracting() -> None:
    shown = _panels(_metrics(**MODELS))["cost"]
    assert [label.get_text() for label in shown.get_yticklabels()] == ["trains"]
    assert "cost" not in _panels(_metrics(int8=MODELS["int8"]))


def test_half_precision_saves_nothing_of_itself() -> None:
    bars = _panels(_metrics(**MODELS))["bars"]
    (half,) = (text.get_text() for text in bars.texts if text.get_text().startswith("20.00 MB"))
    assert half == "20.00 MB: 50% of fp32, 100% of fp16"


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
