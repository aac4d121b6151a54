"""One run: every engine in turn, round after round; what is measured is kept, so that a broken run goes on.

A sample is the JSON of one process. It is kept in a file until the run is complete.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from compressor.bench.medians import Sample, medians
from compressor.runtime import version
from tests.benchmarks import children, machine, serving
from tests.benchmarks.engines import ENGINES, SERVED
from tests.benchmarks.plan import Plan

Measure = Callable[[], Sample]
PREPARATION_SECONDS = 1200
BUSY_REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class Session:
    """Where one run keeps its models and samples.

    Attributes:
        plan: what it measures.
        folder: that holds both.
        threads: cores, and threads of every engine.
        engines: which of ENGINES take part.
    """

    plan: Plan
    folder: Path
    threads: int
    engines: tuple[str, ...] = tuple(ENGINES)

    def run(self, say: Callable[[str], None]) -> dict[str, Any]:
        """Measure what has not been measured yet; return all results."""
        quiet = machine.Quiet()
        missing = self._prepared(say)
        for label, path, measure in self._turns(missing):
            if path.is_file() and not _problem(json.loads(path.read_text())):
                continue
            started = time.monotonic()
            sample = measure()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(sample))
            say(f"{label}: {time.monotonic() - started:.0f} s{_problem(sample)}")
        return self._results(missing) | {"others_share_of_processor": quiet.others_share()}

    def forget(self) -> None:
        """Throw the samples away; once the results are kept."""
        shutil.rmtree(self._samples, ignore_errors=True)

    @property
    def _models(self) -> Path:
        return self.folder / "models"

    @property
    def _samples(self) -> Path:
        """The folder of this plan's samples; other plans, engines and sources have others."""
        made_of = hashlib.sha256(
            json.dumps([self.plan.as_json(), self.threads, machine.versions(), version.versions()]).encode()
        )
        for package in ("compressor", "service", "tests/benchmarks"):
            for path in sorted((children.ROOT / package).rglob("*.py")):
                made_of.update(path.read_bytes())
        return self.folder / "samples" / made_of.hexdigest()[:12]

    def _prepared(self, say: Callable[[str], None]) -> dict[str, str]:
        """Make every model; return why those that are missing are."""
        say("models")
        forms = dict.fromkeys(ENGINES[name].model for name in self.engines)
        arguments = [self._models, *forms, "--config", json.dumps(asdict(self.plan.config))]
        outcome = children.run("models", *arguments, threads=self.threads, seconds=PREPARATION_SECONDS)
        if "failed" in outcome:
            raise RuntimeError(f"no models: {outcome['failed']}")
        return {name: outcome[form] for name in self.engines if (form := ENGINES[name].model) in outcome}

    def _turns(self, missing: dict[str, str]) -> Iterator[tuple[str, Path, Measure]]:
        """Give every measurement in order: its label, the file of its sample, and what measures it."""
        for turn in range(self.plan.rounds):
            yield f"round {turn + 1}, bandwidth", self._sample("bandwidth", turn), self._bandwidth
            for name in (name for name in self.engines if name not in missing):
                yield f"round {turn + 1}, {name}", self._sample(name, turn), partial(self._engine, name)
        for name in (name for name in self.engines if name not in missing):
            yield f"beside a busy loop, {name}", self._sample(f"busy-{name}", 0), partial(self._busy, name)
        for turn in range(self.plan.http_rounds):
            for name in (name for name in SERVED if name in self.engines and name not in missing):
                yield f"HTTP round {turn + 1}, {name}", self._sample(f"http-{name}", turn), partial(self._http, name)

    def _sample(self, name: str, turn: int) -> Path:
        return self._samples / f"{name}-{turn}.json"

    def _kept(self, name: str) -> list[Sample]:
        """Return the samples of the rounds so far."""
        paths = [self._sample(name, turn) for turn in range(self.plan.rounds)]
        return [json.loads(path.read_text()) for path in paths if path.is_file()]

    def _bandwidth(self) -> Sample:
        arguments = (self.plan.bandwidth_bytes, self.threads)
        return children.run("bandwidth", *arguments, threads=self.threads, seconds=self.plan.seconds)

    def _engine(self, name: str) -> Sample:
        slow = {figure for sample in self._kept(name) for figure in sample.get("too_slow", {})}
        batches = [batch for batch in self.plan.batches if f"decode {batch}" not in slow]
        prefills = [tokens for tokens in self.plan.prefills if f"prefill {tokens}" not in slow]
        return self._worker(name, "--batches", *batches, "--prefills", *prefills)

    def _busy(self, name: str) -> Sample:
        """Return decoding beside a busy loop, often enough for a median, since the scheduler moves both about."""
        repeats = ["--repeats", BUSY_REPEATS, "--limit", BUSY_REPEATS * self.plan.limit_seconds]
        with children.busy_loop():
            return self._worker(name, *repeats, "--batches", *self.plan.busy_batches)

    def _http(self, name: str) -> Sample:
        """Return what the service does, and before it the same requests in process, without HTTP."""
        own = self._worker(name, "--throughput", *self.plan.clients)
        if "throughput" not in own:
            return own
        try:
            sample = serving.measure(self._models / ENGINES[name].model, self.plan, self.threads)
        except (RuntimeError, OSError) as error:
            return {"failed": str(error)}
        return sample | {"in_process": own["throughput"]}

    def _worker(self, name: str, *arguments: object) -> Sample:
        common = ["--threads", self.threads, "--started", time.monotonic(), "--limit", self.plan.limit_seconds]
        common += ["--prompt-tokens", self.plan.prompt_tokens, "--new-tokens", self.plan.new_tokens]
        model = self._models / ENGINES[name].model
        return children.run("worker", name, model, *common, *arguments, threads=self.threads, seconds=self.plan.seconds)

    def _results(self, missing: dict[str, str]) -> dict[str, Any]:
        return {
            "made_with": version.versions(),
            "plan": self.plan.as_json(),
            "machine": machine.describe(self.threads),
            "versions": machine.versions(),
            "bandwidth": self._collected("bandwidth", self.plan.rounds),
            "engines": {
                name: {"absent": missing[name]} if name in missing else self._collected(name, self.plan.rounds)
                for name in self.engines
            },
            "busy": {name: self._collected(f"busy-{name}", 1) for name in self.engines if name not in missing},
            "http": {
                name: {"absent": missing[name]}
                if name in missing
                else self._collected(f"http-{name}", self.plan.http_rounds)
                for name in SERVED
                if name in self.engines
            },
        }

    def _collected(self, name: str, turns: int) -> dict[str, Any]:
        """Return the samples of all rounds and their medians, or why there are none."""
        samples = [json.loads(self._sample(name, turn).read_text()) for turn in range(turns)]
        for sample in samples:
            for reason in ("absent", "failed"):
                if reason in sample:
                    return {reason: sample[reason] + self._log(name)}
        return {"samples": samples, "median": medians(samples)}

    def _log(self, name: str) -> str:
        """Return the last line of the log of an engine's installation, where it was kept because that may fail."""
        module = ENGINES[name].module if name in ENGINES else name
        log = self.folder / f"{module}.log"
        lines = log.read_text().strip().splitlines() if log.is_file() else []
        return f" ({lines[-1]})" if lines else ""


def _problem(sample: Sample) -> str:
    reason = sample.get("absent") or sample.get("failed")
    return f", {reason}" if reason else ""
