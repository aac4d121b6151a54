"""The harness itself, on a tiny model and without peers. No figure is asserted, only that it is there."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from compressor.artifact.gpt2_config import GPT2Config
from compressor.bench.medians import medians
from compressor.bench.streams import gaps, percentiles
from compressor.pages import MISSING
from compressor.recipes.pieces import pieces
from tests.benchmarks import report
from tests.benchmarks.bandwidth import read_gb_per_s
from tests.benchmarks.bars import bars
from tests.benchmarks.children import busy_loop
from tests.benchmarks.engines import ENGINES, SERVED, peers_of
from tests.benchmarks.machine import cpu_seconds
from tests.benchmarks.models import tokenizer_json
from tests.benchmarks.plan import FULL, PROMPT, QUICK, Plan
from tests.benchmarks.presets import PLANS, at_depth, choices
from tests.benchmarks.session import Session
from tests.benchmarks.streams import beside

TINY = GPT2Config(vocab_size=16384, n_positions=1024, n_embd=64, n_layer=2, n_head=4, n_inner=256, eos_token_id=0)
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
    arriving_seconds=0.3,
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


def test_one_round_is_beside_a_busy_loop(results: dict[str, Any]) -> None:
    assert set(results["busy"]["ttgpt-int8"]["median"]["decode"]) == {"1", "8"}
    assert "| ttgpt | int8 |" in report.busy(results)


def test_a_long_prompt_arrives_beside_streams(results: dict[str, Any]) -> None:
    found = results["http"]["ttgpt-int8"]["median"]["arrival"]
    assert found["prompt_ms"] > 0
    for window in ("before", "while"):
        assert found[window]["max"] >= found[window]["p95"] >= found[window]["p50"] > 0
    assert "| int8 |" in report.arrival(results)


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


def test_the_reason_of_a_failed_arrival_is_told(results: dict[str, Any]) -> None:
    http = {"ttgpt-int8": {"median": {"arrival": {"failed": "too slow"}}}}
    assert "| int8 | failed: too slow |" in report.arrival(results | {"http": http})


def test_what_was_not_measured_is_said_to_be_missing(results: dict[str, Any]) -> None:
    older = {key: value for key, value in results.items() if key != "busy"} | {"http": {}}
    assert (report.busy(older), report.arrival(older)) == (MISSING, MISSING)


def test_a_failure_is_a_result(session: Session, results: dict[str, Any], tmp_path: Path) -> None:
    hasty = replace(session, plan=replace(PLAN, seconds=0, http_rounds=0), folder=tmp_path)
    (tmp_path / "models").symlink_to(session.folder / "models")
    failed = hasty.run(print)
    assert failed["engines"]["ttgpt-int8"] == failed["busy"]["ttgpt-int8"] == {"failed": "took longer than 0 s"}


def test_prompts_are_equally_long_in_process_and_through_http() -> None:
    tokenizer = Tokenizer.from_str(tokenizer_json(FULL.config.vocab_size).decode())
    assert tokenizer.get_vocab_size() == FULL.config.vocab_size
    assert {len(tokenizer.encode(PROMPT).ids)} == {FULL.prompt_tokens, QUICK.prompt_tokens}


def test_medians_reach_into_every_level() -> None:
    samples = [{"a": {"1": 3.0}, "b": "x"}, {"a": {"1": 1.0, "2": 5.0}, "b": "x"}, {"a": {"1": 2.0}, "b": "x"}]
    assert medians(samples) == {"a": {"1": 2.0, "2": 5.0}, "b": "x"}


def test_percentiles_are_in_milliseconds() -> None:
    assert percentiles([0.001 * i for i in range(101)]) == {"p50": pytest.approx(50), "p95": pytest.approx(95)}


def test_gaps_belong_to_the_window_in_which_they_end() -> None:
    streams: list[list[float]] = [[0, 1, 2, 3, 7, 8, 9], [0, 1, 3, 4, 8, 9, 10]]  # when asked for, then every token
    assert gaps(streams, 1, 4) == [1, 1, 2, 1]
    found = beside(streams, sent=4, answered=7.5)
    assert found["prompt_ms"] == 3500
    assert found["before"]["max"] == 2000
    assert found["while"] == {"p50": 4000, "p95": pytest.approx(4000), "max": 4000}  # 4, 1 and 4 seconds


@pytest.mark.parametrize(("sent", "answered"), [(0.5, 7), (4, 9.5)])
def test_streams_run_throughout(sent: float, answered: float) -> None:
    with pytest.raises(RuntimeError, match="a stream began after"):
        beside([[0, 1, 2, 8, 9], [0, 1, 2, 8, 10]], sent, answered)


def test_a_busy_loop_ends_whatever_happens() -> None:
    def fail() -> None:
        with busy_loop() as pid:
            found.append(pid)
            time.sleep(0.5)
            found.append(cpu_seconds(pid))
            raise RuntimeError("broken")

    found: list[float] = []
    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert found[1] > 0.02
    assert not Path(f"/proc/{found[0]}").exists()


def test_shares_and_ratios_of_the_busy_round() -> None:
    speeds = {"engines": {"ttgpt-int4": 50, "llama.cpp-q4_0": 40}, "busy": {"ttgpt-int4": 40, "llama.cpp-q4_0": 10}}
    results = {
        under: {name: {"median": {"decode": {"1": speed}}} for name, speed in of.items()}
        for under, of in speeds.items()
    }
    assert report.kept_share(results, "ttgpt-int4", 1) == 0.8
    assert report.kept_share(results, "ttgpt-int4", 8) is None
    assert report.ratio(results, "ttgpt-int4", "decode", 1) == 1.25
    assert report.ratio(results, "ttgpt-int4", "decode", 1, "busy") == 4


def test_peers_have_as_many_bits_or_the_fewest_that_are_more() -> None:
    assert peers_of("ttgpt-small") == peers_of("ttgpt-int4")
    assert {ENGINES[name].bits for name in peers_of("ttgpt-int8")} == {8}


@pytest.mark.parametrize("preset", ["balanced", "small"])
def test_every_matrix_has_a_form_in_the_plan_that_is_carried_over(preset: str) -> None:
    plan = json.loads((PLANS / f"budget-{preset}.json").read_text())["plan"]
    for name, shape in FULL.config.matrix_shapes().items():
        assert len(choices(plan, at_depth(name, 6, FULL.config.n_layer))) == len(pieces(name, shape))
    assert [at_depth(f"h.{layer}.mlp.c_fc", 6, 12) for layer in (0, 1, 11)] == [f"h.{i}.mlp.c_fc" for i in (0, 0, 5)]
    assert choices([{"piece": "wte[0:8]", "choice": "svd rank=2 codec=int8"}], "wte") == [
        ("svd", {"rank": "2", "codec": "int8"})
    ]


def test_bandwidth_reads_a_buffer_that_threads_do_not_divide() -> None:
    assert read_gb_per_s((1 << 20) + 1, 2) > 0


def test_engines_and_plans_fit_together() -> None:
    assert set(SERVED) <= set(ENGINES)
    for plan in (FULL, QUICK):
        assert {1, 8} <= set(plan.batches)
        assert {1, 8} <= set(plan.clients)
        json.dumps(plan.as_json())
