"""Results of the simulation as a table and a plot. Nothing here simulates."""

import hashlib
import json
from pathlib import Path
from typing import Any

from compressor.pages import Block, table, told
from compressor.plot import save

PAGE = "k8s/README.md"
RESULTS = Path(__file__).parents[1] / "results" / "scaling.json"
PLOT = RESULTS.with_suffix(".svg")


def block(results: dict[str, Any]) -> str:
    """Return what the simulation says, in Markdown."""
    parts = [_assumed(results), _peaks(results), f"![Replicas and waiting](../tests/benchmarks/results/{PLOT.name})"]
    return "\n\n".join([*parts, _fleets(results)])


def _assumed(results: dict[str, Any]) -> str:
    said = results["assumed"]
    texts = f"{said['slots']} texts of {said['prompt_tokens']} + {said['new_tokens']} tokens"
    load = f"At rest {said['rest_load']:.0%} of what {said['least']} replicas can answer, {said['peak']:g} times that"
    pod = f"{said['pod_seconds']:g} s (assumed, its image on the node) and {said['start_seconds']:.1f} s (measured)"
    return (
        f"{said['model']}, {texts} at a time. {load}\nfor {said['peak_seconds'] / 60:g} minutes, reached within "
        f"{said['ramp_seconds']:g} s. A new pod takes {pod}. *Wait* ends when\nthe prompt was read, *next* is the time "
        f"to every later token. A replica that has requests, one or many, uses {said['busy_share']:.0%} of\n"
        "its cores (measured with many), so CPU tells no load from another."
    )


def _peaks(results: dict[str, Any]) -> str:
    head = ["scaled on", "wait p50, s", "p95", "p99", "next p50, ms", "refused", "replicas, mean", "most"]
    rows = [
        [
            name,
            *_waits(found),
            f"{found['next_ms']:.0f}",
            f"{found['refused']:.1%}",
            f"{found['mean_replicas']:.1f}",
            f"{found['most']}",
        ]
        for name, found in results["peaks"].items()
    ]
    return f"{table(head, rows)}\n\n{_thousand(results['thousand'])}"


def _thousand(found: dict[str, Any]) -> str:
    """Return what the component does with many replicas."""
    first = found["replicas"][0][1]
    return (
        f"With {first} replicas at rest instead, and so much more load, the component has {found['most']} at most: "
        f"wait p50 {found['p50']:.2f} s,\np95 {found['p95']:.2f} s and p99 {found['p99']:.2f} s "
        f"of {found['requests']:,} requests."
    )


def _fleets(results: dict[str, Any]) -> str:
    head = ["replicas", "in turn: wait p50, s", "p95", "p99", "refused"]
    head += ["to the least loaded: p50, s", "p95", "p99", "refused"]
    rows = [
        [f"{int(count):,}", *(cell for each in found.values() for cell in [*_waits(each), f"{each['refused']:.1%}"])]
        for count, found in results["fleets"].items()
    ]
    loads = f"{results['assumed']['fleet_load']:.0%}"
    return f"A fixed number of replicas, at {loads} of what they can answer:\n\n{table(head, rows)}"


def _waits(found: dict[str, Any]) -> list[str]:
    return [f"{found[percent]:.2f}" for percent in ("p50", "p95", "p99")]


def draw(results: dict[str, Any], path: Path = PLOT) -> None:
    """Draw the replicas of every autoscaler and the 95th percentile of waiting over time, as an SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for name, found in results["peaks"].items():
        times, counts = zip(*found["replicas"], strict=True)
        ends = [*times, results["assumed"]["end_seconds"]]
        upper.step([time / 60 for time in ends], [*counts, counts[-1]], where="post", label=name)
        moments, waits = zip(*found["over_time"], strict=True)
        lower.plot([moment / 60 for moment in moments], waits, label=name)
    upper.set(ylabel="replicas", ylim=(0, None), title="A peak of load, and what autoscalers make of it")
    lower.set(xlabel="minutes", ylabel="wait p95, s", yscale="log")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    upper.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))
    save(figure, path, checksum(results))


def checksum(results: dict[str, Any]) -> str:
    """Return a checksum of the results, which the plot carries."""
    return hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()


BLOCKS = (Block("scaling", PAGE, told(RESULTS, block)),)
