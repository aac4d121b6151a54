"""Services that take turns: each is started, if it does not run, and asked by more and more clients."""

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from compressor.artifact import folder as artifact
from compressor.bench import streams
from compressor.bench.endpoint import Endpoint, Model
from compressor.bench.load import Load
from compressor.bench.medians import Sample, medians
from compressor.bench.memory import peak_rss_bytes
from compressor.bench.service import Service, served
from compressor.progress import Progress, silent
from compressor.runtime.load import as_stored

START_SECONDS = 600
SETTINGS = "TTGPT_"  # what the names of the service's settings begin with


@dataclass(frozen=True)
class Result:
    """One model of one service.

    Attributes:
        place: the folder or the URL.
        model: as the service tells.
        figures: medians of all rounds: "load" by clients, see `streams.measure`; "ready_bytes" and "peak_bytes" of the
            process, where it says; "start_seconds" until it was ready, where it was started.
    """

    place: str
    model: Model
    figures: Sample


def measure(places: Sequence[str], load: Load, key: str | None = None, progress: Progress = silent) -> list[Result]:
    """Return what was measured of each model at each place, in order.

    Args:
        places: folders of artefacts, each of which is served with the default settings meanwhile, and URLs of services
            that run.
        load: how much is asked for.
        key: for services that want one.
        progress: of the turns.

    Raises:
        ValueError: naming the place, if that does not answer, or not with what is asked for.
    """
    counts = [_check(place, load, key) for place in dict.fromkeys(places)]
    models: dict[tuple[str, str], Model] = {}
    samples: defaultdict[tuple[str, str], list[Sample]] = defaultdict(list)
    with closing(_turns(places, load, key)) as turns:
        for place, model, sample in progress(turns, label="measuring", total=load.rounds * sum(counts)):
            models[place, model.name] = model
            samples[place, model.name].append(sample)
    return [Result(place, models[place, name], medians(found)) for (place, name), found in samples.items()]


def _check(place: str, load: Load, key: str | None) -> int:
    """Refuse at once what would be refused in its turn; return how many models there are."""
    with _named(place):
        if not _is_url(place):
            _check_room(artifact.read(Path(place), as_stored).config.n_positions, load)
            return 1
        return len(_models(Endpoint(place, key), load))


def _models(endpoint: Endpoint, load: Load) -> tuple[Model, ...]:
    """Return the models of a service that accepts so many requests, for each of which there is room."""
    info = endpoint.info()
    for model in info.models:
        _check_room(model.context, load)
    if max(load.clients) > info.max_requests:
        raise RuntimeError(f"clients must be at most {info.max_requests}, which it accepts, not {max(load.clients)}")
    return info.models


def _check_room(context: int, load: Load) -> None:
    if load.prompt_tokens + load.new_tokens > context:
        asked = f"{load.prompt_tokens} + {load.new_tokens}"
        raise RuntimeError(f"prompt_tokens + new_tokens must be at most {context}, its context, not {asked}")


def _turns(places: Sequence[str], load: Load, key: str | None) -> Generator[tuple[str, Model, Sample], None, None]:
    for _ in range(load.rounds):
        for place in dict.fromkeys(places):
            with _named(place), _running(place, key) as (endpoint, process):
                started = {} if process is None else {"start_seconds": time.monotonic() - process.started}
                for model in _models(endpoint, load):
                    yield place, model, started | _sample(endpoint, process, model, load)


def _sample(endpoint: Endpoint, process: Service | None, model: Model, load: Load) -> Sample:
    """Return the figures of one model in one round; the first requests only warm up."""
    resident = [endpoint.rss_bytes()]
    asyncio.run(streams.measure(endpoint, load.requests(model.name, 1), load.new_tokens))
    found: Sample = {"load": {}}
    for clients in load.clients:
        asked = load.requests(model.name, clients)
        found["load"][str(clients)] = asyncio.run(streams.measure(endpoint, asked, load.new_tokens))
        resident.append(endpoint.rss_bytes())
    if process is not None:
        resident.append(peak_rss_bytes(process.pid))
    known = [size for size in resident if size is not None]
    return found | ({"ready_bytes": known[0], "peak_bytes": max(known)} if known else {})


@contextmanager
def _running(place: str, key: str | None) -> Iterator[tuple[Endpoint, Service | None]]:
    if _is_url(place):
        yield Endpoint(place, key), None
        return
    with served(Path(place), START_SECONDS, _default_settings(os.environ)) as (process, url):
        yield Endpoint(url), process


def _default_settings(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.upper().startswith(SETTINGS)}


@contextmanager
def _named(place: str) -> Iterator[None]:
    """Say at which place an error is."""
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:
        problem = f"does not answer: {error}" if isinstance(error, OSError) else str(error)
        raise ValueError(f"{place}: {problem}") from error


def _is_url(place: str) -> bool:
    return "://" in place
