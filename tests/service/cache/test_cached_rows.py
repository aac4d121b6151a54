"""Rows that are remembered are the rows that are contracted, bit for bit, whoever asked for them before."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.runtime._decoder import Matrix
from compressor.runtime.matrices import rows as contracted
from service.cache.local_tier import ENTRY_BYTES, LocalTier
from service.cache.rows import CachedRows, Curve, Measured
from service.metrics import Metrics
from tests.service.compressed import NAMES, trains, tt_matrix

TABLES = dict(zip(NAMES, (trains().as_stored(), tt_matrix().as_stored()), strict=True))
ROW_BYTES = 32 * 4 + ENTRY_BYTES
NEVER, ALWAYS = Curve((1, 2), (1.0, 2.0)), Curve((1, 2), (0.0, 0.0))


def cached(table: Matrix, rows: int = 10_000, *, auto: bool = False) -> tuple[CachedRows, Metrics]:
    metrics = Metrics()
    made = CachedRows(table, "m", "ttgpt:1:d:wte", LocalTier(rows * ROW_BYTES), None, metrics)
    made.auto = auto
    return made, metrics


def count(metrics: Metrics, result: str, tier: str = "local") -> float:
    labels = {"tier": tier, "result": result}
    return metrics.registry.get_sample_value("ttgpt_core_cache_requests_total", labels) or 0.0


def contractions(metrics: Metrics) -> float:
    labels = {"model_name": "m", "op": "rows"}
    return metrics.registry.get_sample_value("ttgpt_core_contraction_seconds_count", labels) or 0.0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("room", [0, 3, 10_000])
def test_no_bit_depends_on_what_is_remembered(name: str, room: int) -> None:
    table = TABLES[name]
    rows, _ = cached(table, room)

    @settings(max_examples=30)
    @given(st.lists(st.integers(0, table.shape[0] - 1) | st.integers(0, 9), min_size=1, max_size=40))
    def check(ids: list[int]) -> None:
        alone = np.concatenate([contracted(table, np.array([i])) for i in ids])
        np.testing.assert_array_equal(rows(np.array(ids)), alone)
        np.testing.assert_array_equal(rows(np.array([ids])), alone[None])

    check()


def test_each_row_is_contracted_once() -> None:
    rows, metrics = cached(TABLES["token-mps"])
    assert rows(np.array([[1, 2], [2, 3]])).shape == (2, 2, 32)
    assert (count(metrics, "miss"), count(metrics, "hit"), contractions(metrics)) == (3, 0, 1)
    rows(np.array([3, 2, 1, 1]))
    assert (count(metrics, "miss"), count(metrics, "hit"), contractions(metrics)) == (3, 3, 1)
    rows(np.array([1, 4]))
    assert (count(metrics, "miss"), count(metrics, "hit"), contractions(metrics)) == (4, 4, 2)


def test_no_rows_are_no_work() -> None:
    rows, metrics = cached(TABLES["token-mps"])
    assert rows(np.zeros((1, 0), np.int64)).shape == (1, 0, 32)
    assert contractions(metrics) == 0


@pytest.mark.parametrize(("local", "result"), [(NEVER, "bypass"), (ALWAYS, "miss")])
def test_the_slower_way_is_passed_by(local: Curve, result: str) -> None:
    rows, metrics = cached(TABLES["token-mps"], auto=True)
    rows.measured = Measured(Curve((1, 2), (0.5, 1.0)), local)
    rows(np.array([1, 2]))
    assert count(metrics, result) == 2
    assert contractions(metrics) == 1


def test_a_curve_goes_through_what_was_measured() -> None:
    curve = Curve((1, 32, 1024), (1.0, 2.0, 34.0))
    assert [curve.at(n) for n in (1, 32, 1024)] == [1.0, 2.0, 34.0]
    assert 1 < curve.at(16) < 2 < curve.at(100) < 34 < curve.at(2048)
