"""Footprint against quality, drawn from the metrics of a running service."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from compressor import durable
from compressor.figures import figure
from compressor.plot import frontier

COMPONENTS = ("wte", "wpe", "attn", "mlp", "norm")
TIMEOUT_SECONDS = 10
MB = 1e6


@dataclass
class Model:
    """One model as the service reports it.

    Attributes:
        weights: bytes on disk, by component.
        resident: bytes of all weights in memory.
        dense: bytes of all components as dense fp32.
        quality: by metric; what was not measured is missing.
        kv_cache: bytes of the KV cache with every slot full.
        contraction_seconds, contractions: all that were measured so far, by what was contracted: rows or head.
    """

    weights: dict[str, float] = field(default_factory=dict)
    resident: float = 0.0
    dense: float = 0.0
    quality: dict[str, float] = field(default_factory=dict)
    kv_cache: float = 0.0
    contraction_seconds: dict[str, float] = field(default_factory=dict)
    contractions: dict[str, float] = field(default_factory=dict)

    @property
    def size(self) -> float:
        """Bytes of all weights on disk."""
        return sum(self.weights.values())

    def contraction_ms(self, what: str) -> float:
        """Mean time of contracting the rows of one step with the head, or rows of the token table; 0 before any."""
        count = self.contractions.get(what, 0.0)
        return 1e3 * self.contraction_seconds[what] / count if count else 0.0


@dataclass
class Snapshot:
    """What a service reports at one moment: its models by name, and its own memory in bytes by kind."""

    models: dict[str, Model]
    memory: dict[str, float]


def fetch(url: str) -> str:
    """Return what a URL answers; without a path, what /metrics there does.

    Raises:
        ValueError: if it is not one of HTTP, or does not answer with metrics.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"url must begin with http:// or https://, not {url!r}")
    if urlsplit(url).path in ("", "/"):
        url = f"{url.rstrip('/')}/metrics"
    try:
        with urlopen(url, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
            text: str = answer.read().decode()
    except (URLError, OSError) as error:
        raise ValueError(f"url: {url} does not answer: {error}") from error
    return text


def read(text: str) -> Snapshot:
    """Return what metrics in Prometheus' text format say.

    Raises:
        ValueError: if they are not those of a service with models.
    """
    from prometheus_client.parser import text_string_to_metric_families

    models: defaultdict[str, Model] = defaultdict(Model)
    memory: dict[str, float] = {}
    try:
        families = list(text_string_to_metric_families(text))
    except ValueError as error:
        raise ValueError(f"url: these are not metrics in Prometheus' text format: {error}") from error
    for family in families:
        for sample in family.samples:
            name = sample.name.removeprefix("ttgpt_")
            if name in _OF_A_MODEL:
                _OF_A_MODEL[name](models[sample.labels["model_name"]], sample.labels, sample.value)
            elif name in ("memory_rss_bytes", "core_cache_bytes") or name.startswith("cgroup_memory"):
                memory[name.removesuffix("_bytes")] = sample.value
    if not models:
        raise ValueError("url: there is no model in these metrics; ask /metrics of a service that is ready")
    return Snapshot(dict(models), memory)


def _add_weights(model: Model, labels: dict[str, str], value: float) -> None:
    if labels["form"] == "disk":
        model.weights[labels["component"]] = value
    elif labels["form"] == "resident":
        model.resident += value


def _add_dense(model: Model, labels: dict[str, str], value: float) -> None:
    model.dense += value


def _add_quality(model: Model, labels: dict[str, str], value: float) -> None:
    model.quality[labels["metric"]] = value


def _add_kv_cache(model: Model, labels: dict[str, str], value: float) -> None:
    model.kv_cache = value


def _add_contraction_seconds(model: Model, labels: dict[str, str], value: float) -> None:
    model.contraction_seconds[labels["op"]] = value


def _add_contractions(model: Model, labels: dict[str, str], value: float) -> None:
    model.contractions[labels["op"]] = value


_OF_A_MODEL = {
    "model_weight_bytes": _add_weights,
    "model_dense_equivalent_bytes": _add_dense,
    "model_quality": _add_quality,
    "kv_cache_bytes": _add_kv_cache,
    "core_contraction_seconds_sum": _add_contraction_seconds,
    "core_contraction_seconds_count": _add_contractions,
}


def draw(snapshot: Snapshot, path: Path) -> None:
    """Draw four panels: bytes against perplexity, bytes per component, memory, and the time that contracting takes.

    The control group is drawn where it has a limit: elsewhere it may hold other processes.

    The file's ending says in which format. It appears by a rename, so it is there whole.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9.5), layout="constrained")
    mosaic: list[Any] = [["points", "bars"], ["points", "memory"], ["key", "cost"]]
    axes = figure.subplot_mosaic(mosaic, width_ratios=[1, 1.15], height_ratios=[2, 1, 1])
    _points(axes["points"], snapshot.models)
    axes["key"].axis("off")
    axes["key"].legend(*axes["points"].get_legend_handles_labels(), loc="center")
    _bars(axes["bars"], snapshot.models)
    _memory(axes["memory"], snapshot)
    _cost(axes["cost"], snapshot.models)
    figure.suptitle("Footprint vs quality, as the service reports it")
    with durable.replacing(path) as new:
        figure.savefig(new, format=path.suffix.removeprefix(".") or "png", dpi=100)


def _points(axes: Any, models: dict[str, Model]) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    known = {name: model for name, model in models.items() if "perplexity_ratio" in model.quality}
    for name, model in known.items():
        size, ratio = model.size / MB, model.quality["perplexity_ratio"]
        label = f"{name}: {size:.2f} MB, {model.dense / model.size:.2f}x smaller, {figure(ratio, 3)}x perplexity"
        axes.plot(size, ratio, "o", markersize=10, label=label)
    for dense in sorted({model.dense / MB for model in known.values()}):
        axes.plot(dense, 1, "D", color="grey", markersize=9, label=f"dense fp32: {dense:.2f} MB")
    best = frontier([(model.size / MB, model.quality["perplexity_ratio"]) for model in known.values()])
    if len(best) > 1:
        axes.step(*zip(*best, strict=True), where="post", color="black", linestyle=":", label="frontier", zorder=0)
    axes.set(xscale="log", yscale="log", xlabel="weights, MB", ylabel="perplexity, times dense")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="both", alpha=0.3)
    axes.margins(0.12)
    axes.set_title("Down is better, left is smaller")


def _bars(axes: Any, models: dict[str, Model]) -> None:
    names = list(models)[::-1]
    left = dict.fromkeys(names, 0.0)
    for component in COMPONENTS:
        widths = [models[name].weights.get(component, 0.0) / MB for name in names]
        axes.barh(names, widths, left=list(left.values()), label=component, height=0.6)
        left = {name: left[name] + width for name, width in zip(names, widths, strict=True)}
    dense = [models[name].dense / MB for name in names]
    axes.barh(names, dense, fill=False, edgecolor="grey", linestyle="--", label="dense fp32", height=0.7)
    for name in names:
        saved = 1 - models[name].size / models[name].dense
        axes.annotate(f"{saved:.0%} saved", (left[name], name), xytext=(5, 0), textcoords="offset points", va="center")
    axes.set(xlabel="weights on disk, MB", title="Bytes per component")
    axes.legend(fontsize="small", ncols=6, loc="upper center", bbox_to_anchor=(0.4, -0.13))


def _memory(axes: Any, snapshot: Snapshot) -> None:
    bars: dict[str, float | None] = {
        "dense fp32 of all": sum(model.dense for model in snapshot.models.values()),
        "weights of all, resident": sum(model.resident for model in snapshot.models.values()),
        "KV caches, when full": sum(model.kv_cache for model in snapshot.models.values()),
        "cache of contractions": snapshot.memory.get("core_cache"),
        "process (RSS)": snapshot.memory.get("memory_rss"),
    }
    if "cgroup_memory_limit" in snapshot.memory:
        bars["control group"] = snapshot.memory.get("cgroup_memory_current")
        bars["its limit"] = snapshot.memory["cgroup_memory_limit"]
    known = {name: value / MB for name, value in reversed(bars.items()) if value is not None}
    drawn = axes.barh(list(known), list(known.values()), color="tab:blue", height=0.6)
    axes.bar_label(drawn, fmt="%.0f", padding=3)
    axes.set(xlabel="MB", title="Memory")
    axes.margins(x=0.12)


def _cost(axes: Any, models: dict[str, Model]) -> None:
    names = list(models)[::-1]
    for what, label, offset in (("head", "head, a step", 0.2), ("rows", "rows, a look-up", -0.2)):
        times = [models[name].contraction_ms(what) for name in names]
        if not any(times):
            continue
        places = [index + offset for index in range(len(names))]
        drawn = axes.barh(places, times, height=0.38, label=label)
        axes.bar_label(drawn, labels=[f"{ms:.2f}" if ms else "" for ms in times], padding=3, fontsize="small")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="milliseconds, mean since the start", title="Contracting")
    axes.margins(x=0.12)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small", loc="lower right")
