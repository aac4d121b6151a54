"""The simulation's laws; what it says of a measured replica is on k8s/README.md."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.scaling import report, scenario
from tests.benchmarks.scaling.__main__ import DAY, QUEUE
from tests.benchmarks.scaling.autoscaler import SYNC_SECONDS, Autoscaler, Metric
from tests.benchmarks.scaling.fleet import Fleet, Outcome, Scaling
from tests.benchmarks.scaling.manifests import configured
from tests.benchmarks.scaling.scenario import NEW_TOKENS, PROMPT_TOKENS, Day, fleet, peak
from tests.benchmarks.scaling.speed import Speed, measured

BATCH = Speed(step_seconds=(1.0, 1.0, 1.5, 2.25), read_seconds=0.0, slots=3, max_waiting=10**6)
READING = Speed(step_seconds=(1.0, 1.0, 1.5, 2.25), read_seconds=0.5, slots=3, max_waiting=2)
NAMES = ("cpu", "waiting", "in_flight")

gaps = st.lists(st.floats(0, 20), min_size=1, max_size=40)
counts = st.integers(1, 5)


def run(speed: Speed, gaps: list[float], replicas: int, *, least_loaded: bool = False, scaled: bool = False) -> Outcome:
    scaler = Autoscaler(metrics=(Metric(name="in_flight", target=2),), least=1, most=6)
    scaling = Scaling(autoscaler=scaler, pod_seconds=5, scrape_seconds=15) if scaled else None
    arrivals = np.cumsum(np.array(gaps))
    tokens = 1 + np.arange(len(gaps)) * 7 % 13
    return Fleet(speed, replicas, least_loaded=least_loaded, scaling=scaling).run(arrivals, tokens)


@given(gaps, counts, st.booleans(), st.booleans())
def test_each_request_is_answered_once_or_refused(
    gaps: list[float], replicas: int, least_loaded: bool, scaled: bool
) -> None:
    outcome = run(READING, gaps, replicas, least_loaded=least_loaded, scaled=scaled)
    answered = ~np.isnan(outcome.read)
    assert (answered == ~np.isnan(outcome.done)).all()
    assert outcome.refused + answered.sum() == len(gaps)
    assert (outcome.read[answered] >= outcome.arrived[answered] + READING.read_seconds - 1e-9).all()
    fastest = outcome.tokens * min(READING.step_seconds)
    assert (outcome.done[answered] >= (outcome.read + fastest)[answered] - 1e-6).all()


@given(gaps)
def test_work_is_conserved(gaps: list[float]) -> None:
    """One slot: a replica with something to do is never idle, and does nothing else."""
    alone = Speed(step_seconds=(1.0, 2.0), read_seconds=0.5, slots=1, max_waiting=10**6)
    outcome = run(alone, gaps, 1)
    works = alone.read_seconds + alone.step_seconds[1] * outcome.tokens
    free = 0.0
    for arrived, work, done in zip(outcome.arrived, works, outcome.done, strict=True):
        free = max(free, arrived) + work
        assert done == pytest.approx(free)
    assert outcome.busy_seconds == pytest.approx(works.sum())


@given(gaps, st.integers(1, 4))
def test_twice_the_replicas_never_wait_longer(gaps: list[float], replicas: int) -> None:
    """Where reading costs nothing and none is refused: each replica gets a part of what one got before."""
    few, many = run(BATCH, gaps, replicas), run(BATCH, gaps, 2 * replicas)
    assert (many.waits <= few.waits + 1e-6).all()
    assert (many.done <= few.done + 1e-6).all()


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 40)), min_size=1, max_size=30),
    st.sampled_from(NAMES),
    st.integers(1, 10),
    st.integers(0, 10),
)
def test_a_scaler_stays_within_its_limits(seen: list[tuple[float, int]], name: str, least: int, further: int) -> None:
    scaler = Autoscaler(metrics=(Metric(name=name, target=0.7),), least=least, most=least + further)
    current = least
    for turn, (total, ready) in enumerate(seen):
        wanted = scaler.replicas(SYNC_SECONDS * turn, current, dict.fromkeys(NAMES, total), min(ready, current))
        assert least <= wanted <= least + further
        assert wanted <= max(2 * current, current + 4)  # what Kubernetes allows within 15 seconds
        current = wanted


def test_it_goes_down_only_behind_the_window() -> None:
    scaler = Autoscaler(metrics=(Metric(name="in_flight", target=1),), least=1, most=10)
    loads = [4.0] * 3 + [0.0] * 30
    current, seen = 4, []
    for turn, load in enumerate(loads):
        current = scaler.replicas(SYNC_SECONDS * turn, current, {"in_flight": load}, current)
        seen.append(current)
    first = seen.index(1)
    assert SYNC_SECONDS * (first - 2) > 300  # since the last time that four were wanted
    assert set(seen[:first]) == {4}


@pytest.mark.parametrize(("total", "wanted"), [(10.5, 10), (9.5, 10), (12, 12), (5, 5)])
def test_a_tenth_is_tolerated(total: float, wanted: int) -> None:
    assert Metric(name="in_flight", target=1).wanted(10, total, 10) == wanted


def test_the_algorithm_is_the_documented_one() -> None:
    cpu = Metric(name="cpu", target=0.5)
    assert cpu.wanted(3, 3.0, 3) == 6  # twice the target
    assert cpu.wanted(6, 3.0, 3) == 6  # the three that are not ready will take half
    assert cpu.wanted(4, 0.8, 4) == 2


def test_the_same_seed_gives_the_same() -> None:
    speed, found, day = measured(PROMPT_TOKENS, NEW_TOKENS), configured(), Day(30, 30, 30)
    first, again = (peak(speed, found, found.component, day) for _ in range(2))
    assert (first.done == again.done).all()
    assert first.replicas == again.replicas


def test_load_is_as_the_day_says() -> None:
    day, random = Day(200, 300, 200), np.random.default_rng(1)
    arrivals = day.arrivals(50, random)
    per_second = np.histogram(arrivals, [0, 200, 260, 560, 760])[0] / [200, 60, 300, 200]
    assert per_second == pytest.approx([50, 100, 150, 50], rel=0.05)


def test_a_measured_replica_gains_by_batches_and_slows_down_in_them() -> None:
    speed = measured(PROMPT_TOKENS, NEW_TOKENS)
    assert all(later >= earlier for earlier, later in pairwise(speed.step_seconds[1:]))
    assert speed.slots / speed.step_seconds[speed.slots] > 2 / speed.step_seconds[1]
    assert 0 < speed.busy_share <= 1


def test_more_measured_replicas_wait_less() -> None:
    speed = measured(PROMPT_TOKENS, NEW_TOKENS)
    random = np.random.default_rng(scenario.SEED)
    arrivals = np.sort(random.uniform(0, 60, 600))
    tokens = scenario.lengths(len(arrivals), random)
    waits = [np.percentile(Fleet(speed, count).run(arrivals, tokens).waits, 99) for count in (2, 4, 8)]
    assert waits == sorted(waits, reverse=True)


def test_the_component_beats_what_it_replaces() -> None:
    """It waits less than a scaler on waiting requests, and has fewer replicas than one on CPU."""
    speed, found = measured(PROMPT_TOKENS, NEW_TOKENS), configured()
    component, queue, cpu = (peak(speed, found, m, DAY) for m in (found.component, (QUEUE,), (found.cpu,)))
    assert np.percentile(component.waits, 95) < np.percentile(queue.waits, 95)
    assert component.mean_replicas(DAY.end) < 0.7 * cpu.mean_replicas(DAY.end)


def test_few_wait_in_a_fleet_that_is_balanced() -> None:
    speed = measured(PROMPT_TOKENS, NEW_TOKENS)
    turns, least = (fleet(speed, 10, least_loaded=least_loaded) for least_loaded in (False, True))
    assert np.percentile(least.waits, 99) <= np.percentile(turns.waits, 99)


def test_the_committed_results_are_of_these_manifests_and_times() -> None:
    results = json.loads(report.RESULTS.read_text())
    speed, found = measured(PROMPT_TOKENS, NEW_TOKENS), configured()
    (name,) = (name for name in results["peaks"] if name.endswith("(component)"))
    outcome = peak(speed, found, found.component, DAY)
    assert results["peaks"][name]["p99"] == pytest.approx(np.percentile(outcome.waits, 99)), "run: make scaling"
    assert results["assumed"]["slots"] == speed.slots
    assert report.checksum(results) in report.PLOT.read_text(), "run: make scaling"
