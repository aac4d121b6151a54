"""Where tasks run changes nothing but where they run: this process, two others, and a Ray of this test."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import ray
import torch

from compressor.artifact.gpt2_config import GPT2Config
from compressor.artifact.manifest import Source
from compressor.experiments.compression import Compression
from compressor.experiments.workbench import Workbench
from compressor.huggingface import Checkpoint
from compressor.recipes.context import Context
from compressor.recipes.executor import Executor
from compressor.recipes.plans import Budget, CompressedModel, Recipe
from tests.conftest import TOKENIZER, tiny_model

SMALL = GPT2Config(vocab_size=60, n_positions=16, n_embd=16, n_layer=1, n_head=2, n_inner=32, eos_token_id=0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture(params=["local", "ray"])
def elsewhere(request: pytest.FixtureRequest) -> Executor:
    if request.param == "ray":
        request.getfixturevalue("cluster")
    return Executor(kind=request.param, workers=2)


def _within_a_budget(executor: Executor) -> CompressedModel:
    checkpoint = Checkpoint(tiny_model(SMALL), b"", Source(id="tiny", sha256="0" * 64))
    ids = torch.randint(60, (8, 16), generator=torch.Generator().manual_seed(0))
    return Budget(ratio=5.0).make(Context(checkpoint=checkpoint, given=ids, executor=executor))


def test_a_budget_buys_the_same_model(elsewhere: Executor) -> None:
    here, there = _within_a_budget(Executor()), _within_a_budget(elsewhere)
    assert there.settings == here.settings
    bought, expected = there.model.state_dict(), here.model.state_dict()
    assert bought.keys() == expected.keys()
    assert all(torch.equal(bought[name], tensor) for name, tensor in expected.items())


EXPERIMENT = Compression(name="svd", label="SVD", plan=Recipe(method="svd", options={"rank": 4}, rest="int8"))
CHECKPOINT = Checkpoint(tiny_model(), TOKENIZER, Source(id="tiny", sha256="0" * 64))


def _threads_of(executor: Executor) -> int:
    """Return how many threads each of two workers has."""
    return 1 if executor.kind == "ray" else max(1, torch.get_num_threads() // 2)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_an_experiment_has_the_same_result(elsewhere: Executor) -> None:
    with _threads(_threads_of(elsewhere)):  # which split the sums of a measure, and so decide its last digits
        here = EXPERIMENT.run(Workbench(checkpoint=CHECKPOINT))
    assert list(elsewhere.map(EXPERIMENT.run, [Workbench(checkpoint=CHECKPOINT)])) == [here]


def test_tasks_run_in_other_processes_with_a_share_of_the_threads(elsewhere: Executor) -> None:
    asked = ["__import__('os').getpid()", "__import__('torch').get_num_threads()"] * 4
    answers = list(elsewhere.map(eval, asked))
    assert os.getpid() not in answers[::2]
    assert set(answers[1::2]) == {_threads_of(elsewhere)}


def test_one_worker_is_this_process() -> None:
    assert list(Executor(workers=1).map(eval, ["__import__('os').getpid()"])) == [os.getpid()]


def test_answers_come_in_order_and_mistakes_come_through(elsewhere: Executor) -> None:
    assert list(elsewhere.map(pow, range(9), [2] * 9)) == [n**2 for n in range(9)]
    with pytest.raises(ValueError, match="invalid literal for int"):
        list(elsewhere.map(int, ["1", "two", "3"]))


@pytest.mark.parametrize(
    ("kind", "workers", "message"),
    [
        ("dask", None, "executor must be one of local, ray, not 'dask'"),
        ("local", 0, "workers must be between 1 and 256, not 0"),
        ("local", 257, "workers must be between 1 and 256, not 257"),
        ("ray", 1, "workers must be between 2 and 256, not 1"),
    ],
)
def test_mistakes_name_the_field(kind: str, workers: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Executor(kind=kind, workers=workers)


@pytest.mark.usefixtures("cluster")
def test_ray_must_have_as_many_cpus_as_workers() -> None:
    with pytest.raises(ValueError, match="workers must be between 2 and 2, not 3"):
        list(Executor(kind="ray", workers=3).map(abs, [1]))


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"ray is not installed; run: pip install 'ttgpt\[ray\]'"):
        Executor(kind="ray")
