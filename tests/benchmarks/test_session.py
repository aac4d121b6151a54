"""The harness itself, on a tiny model and without peers. No figure is asserted, only that it is there."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from compressor.artifact.gpt2_config import GPT2Config
from tests.benchmarks import report
from tests.benchmarks.bandwidth import read_gb_per_s
from tests.benchmarks.bars import bars
from tests.benchmarks.engines import ENGINES, SERVED
from tests.benchmarks.models import tokenizer_json
from tests.benchmarks.plan import FULL, PROMPT, QUICK, Plan
from tests.benchmarks.session import Session, medians
from tests.benchmarks.streams import percentiles

TINY = GPT2Config(vocab_size=16384, n_positions=64, n_embd=64, n_layer=2, n_head=4, n_inner=256, eos_token_id=0)
PLAN = Plan(
    name="tiny",
    config=TINY,
    rounds=1,
    batches=(1, 8),
    new_tokens=3,
    prefills=(8,),
    clients=(1, 8),
    requests=1,
    http_rounds=1,
    bandwidth_bytes=1 << 20,
    limit_seconds=120,
    seconds=240,
)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return Session(plan=PLAN, folder=tmp_path_factory.mktemp("bench"), threads=1, engines=("ttgpt-int8",))


@pytest.fixture(scope="module")
def results(session: Session) -> dict[str, Any]:
    return session.run(print)


def test_every_figure_is_there(results: dict[str, Any]) -> None:
    assert results["bandwidth"]["median"]["gb_per_s"] > 0
    engine = results["engines"]["ttgpt-int8"]["median"]
    assert set(engine["decode"]) == {"1", "8"}
    assert set(engine["prefill"]) == {"8"}
    weights = sum(out * width for name, (out, width) in TINY.matrix_shapes().items() if name != "wpe")
    assert weights < engine["weight_bytes"] < 1.2 * 4 * weights  # int8 or, where that is the faster path, fp32
    assert engine["peak_rss_bytes"] >= engine["rss_bytes"] > 0
    assert engine["start_seconds"] > 0


def test_the_service_is_measured_too(results: dict[str, Any]) -> None:
    service = results["http"]["ttgpt-int8"]["median"]
    for clients in ("1", "8"):
        assert service["in_process"][clients] > 0
        assert service["stream"][clients]["tokens_per_s"] > 0
        first = service["stream"][clients]["first_token_ms"]
        assert first["p95"] >= first["p50"] > 0
        load = service["load"][clients]
        assert load.get("absent") == "k6 is not installed" or load["tokens_per_s"] > 0


def test_results_become_tables_a_plot_and_bars(results: dict[str, Any], tmp_path: Path) -> None:
    text = report.tables(results)
    assert "| ttgpt | int8 |" in text
    assert "| int8 | 8 |" in text
    report.draw(results, tmp_path / "speed.svg")
    assert report.checksum(results) in (tmp_path / "speed.svg").read_text()
    assert len([bar for bar in bars(results) if bar.value is not None]) >= 3


def test_what_is_measured_is_not_measured_again(session: Session, results: dict[str, Any]) -> None:
    said: list[str] = []
    again = session.run(said.append)
    assert said == ["models"]
    assert again["engines"] == results["engines"]


def test_the_reason_of_an_absent_engine_is_told(results: dict[str, Any]) -> None:
    engines = results["engines"] | {"llama.cpp-q8_0": {"absent": "no compiler"}}
    text = report.tables(results | {"engines": engines})
    assert "- llama.cpp Q8_0: absent: no compiler" in text


def test_a_failure_is_a_result(session: Session, results: dict[str, Any], tmp_path: Path) -> None:
    hasty = replace(session, plan=replace(PLAN, seconds=0, http_rounds=0), folder=tmp_path)
    (tmp_path / "models").symlink_to(session.folder / "models")
    assert hasty.run(print)["engines"]["ttgpt-int8"] == {"failed": "took longer than 0 s"}


def test_prompts_are_equally_long_in_process_and_through_http() -> None:
    tokenizer = Tokenizer.from_str(tokenizer_json(FULL.config.vocab_size).decode())
    assert tokenizer.get_vocab_size() == FULL.config.vocab_size
    assert {len(tokenizer.encode(PROMPT).ids)} == {FULL.prompt_tokens, QUICK.prompt_tokens}


def test_medians_reach_into_every_level() -> None:
    samples = [{"a": {"1": 3.0}, "b": "x"}, {"a": {"1": 1.0, "2": 5.0}, "b": "x"}, {"a": {"1": 2.0}, "b": "x"}]
    assert medians(samples) == {"a": {"1": 2.0, "2": 5.0}, "b": "x"}


def test_percentiles_are_in_milliseconds() -> None:
    assert percentiles([0.001 * i for i in range(101)]) == {"p50": pytest.approx(50), "p95": pytest.approx(95)}


def test_bandwidth_reads_a_buffer_that_threads_do_not_divide() -> None:
    assert read_gb_per_s((1 << 20) + 1, 2) > 0


def test_engines_and_plans_fit_together() -> None:
    assert set(SERVED) <= set(ENGINES)
    for plan in (FULL, QUICK):
        assert {1, 8} <= set(plan.batches)
        assert {1, 8} <= set(plan.clients)
        json.dumps(plan.as_json())
