"""Faults that are really injected into real processes; the short version of `make soak`.

What is counted is asserted, in the scenarios themselves; what is timed is printed.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY, tiny_model, write_artifact
from tests.e2e import hostile, pressure, redis_faults, scarcity, soak
from tests.service.compressed import compressed_models


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: write_artifact(folder / name, model) for name, model in compressed_models().items()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("models") / "tiny", tiny_model(seed=1))


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose texts are long enough to be left in the middle, however busy the machine is."""
    return write_artifact(
        tmp_path_factory.mktemp("models") / "roomy", tiny_model(replace(TINY, n_positions=512), seed=1)
    )


def tell(name: str, figures: dict[str, Any]) -> None:
    print(f"\n{name}: {json.dumps(figures, indent=2)}")


def test_redis_faults(compressed: dict[str, Path], tmp_path: Path) -> None:
    tell(
        "redis",
        redis_faults.redis_faults(compressed["token-mps"], TINY.vocab_size, tmp_path, seconds=1.0, timeout_ms=300),
    )


def test_overload(plain: Path, tmp_path: Path) -> None:
    tell("overload", pressure.overload(plain, tmp_path, seconds=4.0))


def test_half_the_clients_hang_up(roomy: Path, tmp_path: Path) -> None:
    tell("hang-ups", pressure.hang_ups(roomy, tmp_path, seconds=2.0))


def test_a_kv_cache_that_is_too_small(roomy: Path, tmp_path: Path) -> None:
    tell("scarcity", scarcity.scarcity(roomy, tmp_path, seconds=4.0, clients=80))


def test_killed_and_started_again(plain: Path, tmp_path: Path) -> None:
    tell("killed", pressure.kill_and_restart(plain, tmp_path))


def test_a_full_service_drains(plain: Path, tmp_path: Path) -> None:
    tell("drain", pressure.drain(plain, tmp_path))


def test_costly_bodies(plain: Path, tmp_path: Path) -> None:
    tell("invalid", hostile.invalid(plain, tmp_path))


def test_many_prompts_to_score(plain: Path, tmp_path: Path) -> None:
    tell("scoring", hostile.scoring(plain, tmp_path))


def test_half_sent_requests(plain: Path, tmp_path: Path) -> None:
    tell("half-sent", hostile.half_sent(plain, tmp_path))


def test_a_short_soak(plain: Path, tmp_path: Path) -> None:
    tell("soak", soak.soak(plain, tmp_path, seconds=10.0, settle_seconds=4.0))
