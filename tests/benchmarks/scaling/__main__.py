"""`python -m tests.benchmarks.scaling`: simulate, write the results, refresh their page and the plot."""

import argparse
import json
import time
from dataclasses import replace
from typing import Any

import numpy as np

from compressor.pages import refresh
from compressor.runtime.version import versions
from tests.benchmarks.scaling import report, scenario
from tests.benchmarks.scaling.autoscaler import Metric
from tests.benchmarks.scaling.fleet import Outcome
from tests.benchmarks.scaling.manifests import Configured, configured
from tests.benchmarks.scaling.scenario import NEW_TOKENS, PROMPT_TOKENS, Day, fleet, peak
from tests.benchmarks.scaling.speed import MODEL, PRESET, Speed, measured

QUEUE = Metric(name="waiting", target=4)  # what is often looked at, for comparison
DAY = Day(300, 600, 600)
SHORT = Day(60, 120, 0)  # for many replicas
MANY = 1000
FLEETS = (3, 30, 300, MANY)
WINDOW_SECONDS = 15.0


def simulate(speed: Speed, found: Configured) -> dict[str, Any]:
    """Return all results, the same each time."""
    (component,) = found.component
    later = replace(component, target=2 * component.target)
    scaled: dict[str, tuple[Metric, ...]] = {
        f"CPU, {found.cpu.target:.0%} (base)": (found.cpu,),
        f"waiting, {QUEUE.target:g}": (QUEUE,),
        f"CPU, {found.cpu.target:.0%}, and waiting, {QUEUE.target:g}": (found.cpu, QUEUE),
        f"in flight, {later.target:g}": (later,),
        f"in flight, {component.target:g} (component)": (component,),
    }
    peaks = {name: _peak(peak(speed, found, metrics, DAY), DAY) for name, metrics in scaled.items()}
    many = replace(found, least=MANY * found.least // found.most, most=MANY)
    fleets = {
        str(count): {
            "in turn": _waits(fleet(speed, count, least_loaded=False)),
            "least loaded": _waits(fleet(speed, count, least_loaded=True)),
        }
        for count in FLEETS
    }
    thousand = _peak(peak(speed, many, found.component, SHORT), SHORT)
    return {"assumed": _assumed(speed, found), "peaks": peaks, "fleets": fleets, "thousand": thousand}


def _assumed(speed: Speed, found: Configured) -> dict[str, Any]:
    return {
        "model": f"{MODEL} {PRESET} on two cores",
        "slots": speed.slots,
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "rest_load": scenario.REST_LOAD,
        "least": found.least,
        "peak": scenario.PEAK,
        "peak_seconds": DAY.peak,
        "ramp_seconds": scenario.RAMP_SECONDS,
        "end_seconds": DAY.end,
        "fleet_load": scenario.FLEET_LOAD,
        "pod_seconds": scenario.POD_SECONDS,
        "start_seconds": speed.start_seconds,
        "busy_share": speed.busy_share,
    }


def _peak(outcome: Outcome, day: Day) -> dict[str, Any]:
    answered = ~np.isnan(outcome.read)
    windows = (outcome.arrived[answered] // WINDOW_SECONDS).astype(int)
    over_time = [
        (float(WINDOW_SECONDS * window), round(float(np.percentile(outcome.waits[windows == window], 95)), 4))
        for window in np.unique(windows)
    ]
    return {
        **_waits(outcome),
        "next_ms": float(1e3 * np.nanmedian((outcome.done - outcome.read) / outcome.tokens)),
        "requests": len(outcome.arrived),
        "mean_replicas": outcome.mean_replicas(day.end),
        "most": max(count for _, count in outcome.replicas),
        "replicas": outcome.replicas,
        "over_time": over_time,
    }


def _waits(outcome: Outcome) -> dict[str, float]:
    waits = {f"p{percent}": float(np.percentile(outcome.waits, percent)) for percent in (50, 95, 99)}
    return waits | {"refused": outcome.refused / len(outcome.arrived)}


def main() -> None:
    """Simulate and publish."""
    argparse.ArgumentParser(prog="python -m tests.benchmarks.scaling", description=__doc__).parse_args()
    started = time.monotonic()
    simulated = simulate(measured(PROMPT_TOKENS, NEW_TOKENS), configured())
    results = json.loads(json.dumps({"made_with": versions(), **simulated}))
    report.RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    refresh(report.BLOCKS)
    report.draw(results)
    print(f"{report.block(results)}\n\n{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
