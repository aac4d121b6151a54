"""Footprint against quality, drawn from the metrics of a running service."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from compressor.figures import figure
from compressor.plot import annotate, frontier, scale_ratios
from compressor.storage import durable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMPONENTS = {"wte": "0.25", "wpe": "0.4", "attn": "0.55", "mlp": "0.7", "norm": "0.85"}  # and their shades of grey
TIMEOUT_SECONDS = 10
MB = 1e6
WORST = 1e9  # ratios above are drawn there


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
    """Write the picture; the file's ending says in which format. It appears by a rename, so it is there whole."""
    with durable.replacing(path) as new:
        picture(snapshot).savefig(new, format=path.suffix.removeprefix(".") or "png", dpi=100)


def picture(snapshot: Snapshot) -> "Figure":
    """Return bytes against perplexity, bytes per component, memory, and the time of contracting where a model does.

    A colour is a model wherever it is seen; components are shades of grey. The control group is drawn where it has a
    limit: elsewhere it may hold other processes.
    """
    from matplotlib.figure import Figure

    contracting = {name: model for name, model in snapshot.models.items() if any(model.contractions.values())}
    colours = _colours(snapshot.models)
    figure = Figure(figsize=(13, 9.5), layout="constrained")
    mosaic: list[Any] = [["points", "bars"], ["points", "memory"], *([["points", "cost"]] if contracting else [])]
    heights = [2, 1, 0.4 + 0.3 * len(contracting)][: len(mosaic)]
    axes = figure.subplot_mosaic(mosaic, width_ratios=[1, 1.15], height_ratios=heights)
    _bars(axes["bars"], snapshot.models, colours)
    _memory(axes["memory"], snapshot)
    if contracting:
        _cost(axes["cost"], contracting, colours)
    figure.suptitle("Footprint vs quality, as the service reports it")
    _points(axes["points"], snapshot.models, colours)  # the last, because its labels go where there is room
    return figure


def _colours(models: Iterable[str]) -> dict[str, Any]:
    from matplotlib import colormaps

    names = list(models)
    palette = colormaps["tab10" if len(names) <= 10 else "tab20"]
    return {name: palette(index % palette.N) for index, name in enumerate(names)}


def _points(axes: Any, models: dict[str, Model], colours: dict[str, Any]) -> None:
    known = {name: model for name, model in models.items() if model.quality.get("perplexity_ratio", nan) > 0}
    places: defaultdict[tuple[float, float], list[str]] = defaultdict(list)
    for name, model in known.items():
        places[model.size / MB, min(model.quality["perplexity_ratio"], WORST)].append(name)
    labels: list[tuple[str, tuple[float, float], Any]] = []
    for (size, ratio), names in places.items():
        for inner, name in reversed(list(enumerate(reversed(names)))):  # the same point: one ring around the other
            axes.plot(size, ratio, "o", markersize=10 + 5 * inner, color=colours[name])
        text = f"{size:.2f} MB, {figure(known[names[0]].quality['perplexity_ratio'], 4)} x dense"
        labels.append(("\n".join([*names, text]), (size, ratio), colours[names[0]]))
    for dense in sorted({model.dense / MB for model in known.values()}):
        axes.plot(dense, 1, "D", color="grey", markersize=9)
        labels.append((f"dense fp32\n{dense:.2f} MB", (dense, 1), "grey"))
    best = frontier(list(places))
    if len(best) > 1:
        axes.step(*zip(*best, strict=True), where="post", color="black", linestyle=":", zorder=0, label="frontier")
        axes.legend(fontsize="small", loc="lower right")
    axes.set_title("Down is better, left is smaller")
    scale_ratios(axes, margins=(0.25, 0.12))
    annotate(axes, labels)


def _bars(axes: Any, models: dict[str, Model], colours: dict[str, Any]) -> None:
    names = list(models)[::-1]
    left = dict.fromkeys(names, 0.0)
    for component, grey in COMPONENTS.items():
        widths = [models[name].weights.get(component, 0.0) / MB for name in names]
        axes.barh(names, widths, left=list(left.values()), label=component, height=0.6, color=grey, edgecolor="white")
        left = {name: left[name] + width for name, width in zip(names, widths, strict=True)}
    for label, share, style in (("dense fp32", 1, "--"), ("dense fp16", 0.5, ":")):
        dense = [share * models[name].dense / MB for name in names]
        axes.barh(names, dense, fill=False, edgecolor="grey", linestyle=style, label=label, height=0.7)
    for name in names:
        share = models[name].size / models[name].dense
        text = f"{left[name]:.2f} MB: {share:.0%} of fp32, {2 * share:.0%} of fp16"
        background = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8}
        place = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "fontsize": "small"}
        axes.annotate(text, (left[name], name), bbox=background, **place)
    axes.set(xlabel="weights on disk, MB", title="Bytes per component")
    axes.legend(fontsize="small", ncols=7, loc="upper center", bbox_to_anchor=(0.4, -0.13))
    _colour_names(axes, names, colours)


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
    drawn = axes.barh(list(known), list(known.values()), color="0.5", height=0.6)
    axes.bar_label(drawn, fmt="%.0f", padding=3)
    axes.set(xlabel="MB", title="Memory")
    axes.margins(x=0.12)


def _cost(axes: Any, models: dict[str, Model], colours: dict[str, Any]) -> None:
    from matplotlib.patches import Patch

    names = list(models)[::-1]
    for what, hatch, offset in (("head", "", 0.2), ("rows", "///", -0.2)):
        for index, name in enumerate(names):
            if ms := models[name].contraction_ms(what):
                style = {"height": 0.38, "color": colours[name], "hatch": hatch, "edgecolor": "white"}
                axes.bar_label(axes.barh(index + offset, ms, **style), fmt="%.3f", padding=3, fontsize="small")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="milliseconds, mean since the start", title="Contracting", ylim=(-0.5, len(names) - 0.5))
    axes.margins(x=0.12)
    kinds = (("head, a step", ""), ("rows, a look-up", "///"))
    key = [Patch(facecolor="0.5", edgecolor="white", hatch=hatch, label=label) for label, hatch in kinds]
    axes.legend(handles=key, fontsize="small", loc="lower right")
    _colour_names(axes, names, colours)


def _colour_names(axes: Any, names: Sequence[str], colours: dict[str, Any]) -> None:
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_color(colours[name])
