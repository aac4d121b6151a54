"""What is simulated: a peak of load for each autoscaler, and fleets of up to a thousand replicas."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.scaling.autoscaler import Autoscaler, Metric
from tests.benchmarks.scaling.fleet import Fleet, Floats, Outcome, Scaling
from tests.benchmarks.scaling.manifests import Configured
from tests.benchmarks.scaling.speed import Speed

SEED = 7
PROMPT_TOKENS, NEW_TOKENS = 128, 128  # the latter on average
FLEET_LOAD = 0.95  # of what all replicas can answer, where their number stays
FLEET_SECONDS = 60.0
POD_SECONDS = 10.0  # until a new pod is scheduled and its process started; the image is on the node
REST_LOAD = 0.5  # of what the fewest replicas can answer, outside of the peak
PEAK = 3.0  # times that
RAMP_SECONDS = 60.0


@dataclass(frozen=True)
class Day:
    """How load goes: a rest, a ramp, a peak, and a rest again; in seconds."""

    rest: float
    peak: float
    after: float

    @property
    def end(self) -> float:
        """When it is over."""
        return self.rest + RAMP_SECONDS + self.peak + self.after

    def arrivals(self, rate: float, random: np.random.Generator) -> Floats:
        """Return the moments of requests, of which so many per second come at rest, as a Poisson process."""
        times = np.sort(random.uniform(0, self.end, random.poisson(PEAK * rate * self.end)))
        full = self.rest + RAMP_SECONDS
        factor = np.where(times < full + self.peak, np.interp(times, [self.rest, full], [1, PEAK]), 1)
        arrivals: Floats = times[random.random(len(times)) * PEAK < factor]
        return arrivals


def lengths(count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Return the new tokens of so many requests: at least one, NEW_TOKENS on average, often few and seldom many."""
    return random.geometric(1 / NEW_TOKENS, count)


def peak(speed: Speed, configured: Configured, metrics: tuple[Metric, ...], day: Day, times: int = 1) -> Outcome:
    """Return what an autoscaler makes of a peak, with all numbers of replicas and the load `times` as large."""
    random = np.random.default_rng(SEED)
    least, most = times * configured.least, times * configured.most
    arrivals = day.arrivals(REST_LOAD * least * speed.capacity(NEW_TOKENS), random)
    scaler = Autoscaler(metrics=metrics, least=least, most=most, behavior=configured.behavior)
    scaling = Scaling(autoscaler=scaler, pod_seconds=POD_SECONDS, scrape_seconds=configured.scrape_seconds)
    return Fleet(speed, least, scaling=scaling).run(arrivals, lengths(len(arrivals), random))


def fleet(speed: Speed, replicas: int, *, least_loaded: bool) -> Outcome:
    """Return what a fixed number of replicas makes of a steady load."""
    random = np.random.default_rng(SEED)
    rate = FLEET_LOAD * replicas * speed.capacity(NEW_TOKENS)
    arrivals = np.sort(random.uniform(0, FLEET_SECONDS, random.poisson(rate * FLEET_SECONDS)))
    return Fleet(speed, replicas, least_loaded=least_loaded).run(arrivals, lengths(len(arrivals), random))
