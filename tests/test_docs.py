"""The README says what is true: tables are fresh, and every command, route and setting is named."""

from pathlib import Path

import pytest

from compressor.cli import app as cli
from compressor.experiments.runner import experiments, result_of
from compressor.experiments.tables import PLOT, refreshed, results_sha256
from compressor.methods import METHODS
from compressor.recipes.budget import PRESETS
from service.http.app import create_app
from service.settings import Settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_generated_blocks_are_fresh() -> None:
    assert refreshed(README) == README, "run: ttgpt compare"


def test_the_plot_is_fresh() -> None:
    assert results_sha256() in PLOT.read_text(), "run: ttgpt compare"
    assert str(PLOT.relative_to(ROOT)) in README


@pytest.mark.parametrize("experiment", experiments(), ids=lambda experiment: experiment.name)
def test_every_experiment_has_an_up_to_date_result(experiment: object) -> None:
    assert result_of(experiment) is not None  # type: ignore[arg-type]


def _commands() -> list[str]:
    """Return every command, those of groups with the group's name before them."""
    groups = [("", cli)] + [(f"{group.name} ", group.typer_instance) for group in cli.registered_groups]
    named = [(prefix, command) for prefix, app in groups if app for command in app.registered_commands]
    return [f"{prefix}{c.name or c.callback.__name__}" for prefix, c in named if c.callback]


@pytest.mark.parametrize("command", _commands())
def test_every_command_is_named(command: str) -> None:
    assert f"`ttgpt {command}" in README


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_described_as_it_is(name: str) -> None:
    assert f"| `{name}` | {PRESETS[name].ratio:g} | {PRESETS[name].minutes:g} |" in README


def test_the_length_of_the_text_is_the_measured_one() -> None:
    measured = [result for experiment in experiments() if (result := result_of(experiment))]
    assert {f"{result['quality']['tokens'] + 1:,}" for result in measured} == {"6,864"}
    assert "(6,864 tokens, context 512, stride 512)" in README


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_named(method: str) -> None:
    assert f"`{method}`" in README


def test_every_route_is_named(tiny_artifact: Path) -> None:
    paths = create_app(Settings(models=(tiny_artifact,))).openapi()["paths"]
    routes = [f"`{verb.upper()} {path}`" for path, verbs in paths.items() for verb in verbs]
    assert [route for route in routes if route not in README] == []


@pytest.mark.parametrize("setting", Settings.model_fields)
def test_every_setting_is_named(setting: str) -> None:
    assert f"`TTGPT_{setting.upper()}`" in README
