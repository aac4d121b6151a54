"""One engine in a process of its own: `python -m tests.benchmarks.worker`, one line of JSON on stdout.

Decoding speed is that of all tokens but the first: prompts of `prompt_tokens` are continued by 1 and by `new_tokens`
tokens, and the difference counts. Imports nothing heavy before the engine itself.
"""

import argparse
import json
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compressor.bench.memory import peak_rss_bytes, rss_bytes
from compressor.process.threads import wait_briefly
from tests.benchmarks.engines import ENGINES, OURS
from tests.benchmarks.runner import Runner

FIRST_TOKENS = 3  # runs to the first token; their median is subtracted, and the first of all warms up


class Measuring:
    """Times one loaded engine."""

    def __init__(self, runner: Runner, prompt_tokens: int, new_tokens: int, repeats: int = 1) -> None:
        self._runner = runner
        self._prompt_tokens = prompt_tokens
        self._new_tokens = new_tokens
        self._repeats = repeats

    def seconds(self, batch: int, prompt_tokens: int, count: int) -> float:
        """Return how long it takes to read `batch` prompts and write `count` tokens after each.

        Raises:
            RuntimeError: if the engine does not write that many.
        """
        drawn = random.Random(batch)
        prompts = [[drawn.randrange(1, 16384) for _ in range(prompt_tokens)] for _ in range(batch)]
        started = time.perf_counter()
        written = self._runner.generate(prompts, count)
        elapsed = time.perf_counter() - started
        if [len(row) for row in written] != [count] * batch:
            raise RuntimeError(f"{count} tokens were asked for, {[len(row) for row in written]} came")
        return elapsed

    def decode(self, batch: int) -> float:
        """Return tokens per second of all rows together, the median of the repeats."""
        self._runner.reserve(batch, self._prompt_tokens + self._new_tokens)
        first = statistics.median(self.seconds(batch, self._prompt_tokens, 1) for _ in range(FIRST_TOKENS))
        runs = (self.seconds(batch, self._prompt_tokens, self._new_tokens) for _ in range(self._repeats))
        whole = statistics.median(runs)
        return batch * (self._new_tokens - 1) / (whole - first)

    def prefill(self, prompt_tokens: int) -> float:
        """Return tokens of a prompt per second, until the first new one is there."""
        self._runner.reserve(1, prompt_tokens + 1)
        return prompt_tokens / min(self.seconds(1, prompt_tokens, 1) for _ in range(2))

    def throughput(self, batch: int) -> float:
        """Return new tokens per second of whole requests, reading the prompts included."""
        self._runner.reserve(batch, self._prompt_tokens + self._new_tokens)
        self.seconds(batch, self._prompt_tokens, 1)
        return batch * self._new_tokens / self.seconds(batch, self._prompt_tokens, self._new_tokens)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Return one sample of everything that was asked for."""
    if given.engine.startswith(OURS):
        wait_briefly()  # as the command line and the service do
    runner = ENGINES[given.engine].loader()(given.model, given.threads)
    measuring = Measuring(runner, given.prompt_tokens, given.new_tokens, given.repeats)
    runner.reserve(1, given.prompt_tokens + 1)
    measuring.seconds(1, given.prompt_tokens, 1)
    sample: dict[str, Any] = {"start_seconds": time.monotonic() - given.started}
    sample["weight_bytes"], sample["kv_bytes_per_token"] = runner.weight_bytes, runner.kv_bytes_per_token
    if given.throughput:
        return sample | {"throughput": {str(batch): measuring.throughput(batch) for batch in given.throughput}}
    sample |= {"decode": {}, "prefill": {}, "too_slow": {}}
    for batch in given.batches:
        _figure(sample, "decode", batch, measuring.decode, given.limit)
        sample.setdefault("rss_bytes", rss_bytes())  # after batch 1
    for tokens in given.prefills:
        _figure(sample, "prefill", tokens, measuring.prefill, given.limit)
    return sample | {"peak_rss_bytes": peak_rss_bytes()}


def _figure(sample: dict[str, Any], kind: str, size: int, measure: Callable[[int], float], limit: float) -> None:
    """Add one figure to the sample, or say that it takes too long."""
    try:
        with limited(limit):
            sample[kind][str(size)] = measure(size)
    except TooSlowError:
        sample["too_slow"][f"{kind} {size}"] = limit


class TooSlowError(Exception):
    """A figure takes longer than it may."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TooSlowError as soon as the interpreter has its turn after `seconds`."""

    def stop(*_: object) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main() -> None:
    """Measure; an engine that is not installed is reported on stdout, any other error ends the process."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.worker", description=__doc__)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("model", type=Path)
    parser.add_argument("--started", type=float, default=time.monotonic(), help="when the process was, monotonic")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="*", default=[1])
    parser.add_argument("--repeats", type=int, default=1, help="of each decoding; their median counts")
    parser.add_argument("--prefills", type=int, nargs="*", default=[])
    parser.add_argument("--limit", type=float, default=60, help="seconds that one figure may take")
    parser.add_argument("--throughput", type=int, nargs="*", help="measure whole requests at these batches instead")
    try:
        print(json.dumps(measure(parser.parse_args())))
    except ImportError as error:
        print(json.dumps({"absent": str(error)}))


if __name__ == "__main__":
    main()
