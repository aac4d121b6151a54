"""Tiny random models with the real tokenizer, and real servers on ephemeral ports."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn

from compressor.formats import Dense
from compressor.gpt2 import GPT2
from compressor.runtime.kv import Cache
from compressor.runtime.model import Floats, Model
from service.engine.engine import Engine
from service.engine.generation import Generation, Prompt
from service.engine.models import LoadedModel, load
from service.engine.sampling import Sampling
from service.http.app import create_app
from service.http.connection import connections_with
from service.metrics import Metrics
from service.settings import Settings
from tests.conftest import tiny_model, write_artifact

Sample = Callable[..., float]


def int8_model(seed: int) -> GPT2:
    """Return a random model whose matrices are int8."""
    model = tiny_model(seed=seed)
    return model.with_matrices({name: Dense.of(form.dense(), "int8") for name, form in model.matrices().items()})


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two artefacts with different weights: tiny-fp32 and tiny-int8."""
    folder = tmp_path_factory.mktemp("models")
    return [
        write_artifact(folder / "tiny-fp32", tiny_model(seed=1)),
        write_artifact(folder / "tiny-int8", int8_model(seed=2)),
    ]


@pytest.fixture(scope="session")
def tiny(artifacts: list[Path]) -> LoadedModel:
    """The loaded fp32 model."""
    return load(artifacts[0])


@pytest.fixture(scope="session")
def settings(artifacts: list[Path]) -> Settings:
    """Settings that serve both artefacts."""
    return Settings(models=tuple(artifacts), threads=1)


def logits_of(decoder: Model, ids: Sequence[int], dtype: str = "fp32") -> Floats:
    """Return the logits behind every token of a text [T, V], with keys and values of `dtype`."""
    tokens, count = np.array(ids), len(ids)
    cache = Cache(decoder.config, 1, count, dtype)
    logits = decoder.read(tokens, cache, np.array([0]), np.array([count]), wanted=np.arange(count)).logits
    assert logits is not None
    return logits


def generation(
    model: LoadedModel, metrics: Metrics, *, prompt: int = 3, new: int = 5, how: Sampling | None = None
) -> Generation:
    """Return a request for `new` tokens after a prompt of `prompt` made-up ones."""
    ids = tuple(range(100, 100 + prompt))
    return Generation(Prompt(model=model, ids=ids, max_new_tokens=new, sampling=how or Sampling()), metrics)


@contextmanager
def serving(settings: Settings, engine: Engine | None = None) -> Iterator[httpx.Client]:
    """Run a real server in a thread until the block ends; its models are loaded."""
    app = create_app(settings, engine)
    http = connections_with(settings)
    server = uvicorn.Server(uvicorn.Config(app, http=http, port=0, log_config=None, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            wait_until(lambda: client.get("/readyz").status_code == 200)
            yield client
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def client(settings: Settings) -> Iterator[httpx.Client]:
    """A client of a server of both models."""
    with serving(settings) as client:
        yield client


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for `condition`; the time only bounds a failing test."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def sample(client: httpx.Client, name: str, **labels: str) -> float:
    """Return one sample of /metrics, 0 if it is not there."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    for line in client.get("/metrics").text.splitlines():
        head, _, value = line.rpartition(" ")
        if head.partition("{")[0] == name and all(part in head for part in wanted):
            return float(value)
    return 0.0
