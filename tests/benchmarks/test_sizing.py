"""Pods get as much memory as was measured, and some more."""

import pytest

from tests.benchmarks import sizing

RESULTS = sizing.read()
ROWS = RESULTS["rows"]
EACH = pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['model']}-{row['preset']}")


def test_what_is_shipped_was_measured() -> None:
    cases = [(case.model, case.preset) for case in sizing.CASES]
    measured = [(row["model"], row["preset"]) for row in ROWS]
    assert measured == [case for case in cases if case in measured]
    assert {("gpt2-mini", "int8"), ("GPT-2 124M", "int8")} <= set(measured)


def test_the_settings_were_the_defaults() -> None:
    assert RESULTS["settings"] == sizing.settings()


@EACH
def test_the_request_holds_the_peak_and_passes_the_kv_budget(row: dict[str, int]) -> None:
    request = sizing.request_mib(row) << 20
    assert request >= sizing.HEADROOM * row["peak_bytes"]
    assert row["kv_bytes"] <= request // 2
    assert sizing.request_mib(row) % sizing.STEP_MIB == 0


@EACH
def test_memory_grows_with_use(row: dict[str, int]) -> None:
    assert row["weights_bytes"] < row["ready_bytes"] < row["peak_bytes"]


def test_a_larger_peak_asks_for_more() -> None:
    row = {"peak_bytes": 300 << 20, "kv_bytes": 1, "cache_bytes": 0}
    assert sizing.request_mib(row) == 384
    assert sizing.request_mib({**row, "peak_bytes": 400 << 20}) == 512
    assert sizing.request_mib({**row, "cache_bytes": 64 << 20}) == 512
    assert sizing.request_mib({**row, "kv_bytes": 300 << 20}) == 640
