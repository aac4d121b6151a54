"""The pages say what is true: blocks are fresh, links lead somewhere, and everything is explained in one place."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from compressor.cli import app as cli
from compressor.experiments.compression import compressions
from compressor.experiments.experiment import Experiment
from compressor.experiments.runner import experiments
from compressor.experiments.tables import DECODING, PLOTS, frontier_experiments, results_sha256
from compressor.formats import FORMATS
from compressor.methods import METHODS
from compressor.pages import ROOT, refreshed
from compressor.recipes.budget import PRESETS
from service.http.app import create_app
from service.http.openai.schemas import CompletionRequest
from service.http.tgi.schemas import GenerateRequest, Parameters
from service.settings import Settings
from tests.deploy.test_metric_contract import COUNTERS, GAUGES, HISTOGRAMS
from tests.pages import BLOCKS

# Blocks and pictures of the pages, and what makes each anew.
MADE_BY = {
    "answer": "python -m tests.e2e.answer",
    "frontier": "ttgpt compare",
    "budgets": "ttgpt compare",
    "embeddings": "ttgpt compare",
    "methods": "ttgpt compare",
    "methods-embedding": "ttgpt compare",
    "methods-blocks": "ttgpt compare",
    "tensorgpt": "ttgpt compare",
    "gpt2": "python -m compressor.experiments gpt2",
    "probe": "python -m compressor.experiments probe",
    "pretraining": "ttgpt compare --books DIR",
    "claims": "ttgpt compare --books DIR",
    "ttm-layer": "python -m compressor.experiments training",
    "bench": "ttgpt bench DIR... --json > tests/benchmarks/results/bench.json",
    "images": "make test-images",
    "prompts": "make bench-prompts",
    "scaling": "make scaling",
    "scaling.svg": "make scaling",
    "peers": "make bench",
    "speed": "make bench",
    "busy": "make bench",
    "arrival": "make bench",
    "sizing": "make sizing",
    "cache": "make bench-cache",
    "faults": "make soak",
    "clients": "make clients",
    "page-light.png": "python -m tests.e2e.picture",
    "page-dark.png": "python -m tests.e2e.picture",
    "footprint.svg": "make pages",
    "footprint-embedding.svg": "make pages",
    "learning-curves.svg": "make pages",
    "speed.svg": "make pages",
    "footprint.png": "make dashboards",
    "serving.png": "make dashboards",
}
SCREEN = 120  # characters of a table's row
FIRST_PAGE_LINES = 150
FOUND_AT_START = {"models": "", "default_model": "the first", "threads": "the cgroup's cores"}
FOUND_AT_START |= {"kv_bytes": "for eight long texts"}


def _pages() -> dict[str, str]:
    listed = subprocess.run(["git", "ls-files", "*README.md"], capture_output=True, text=True, check=True, cwd=ROOT)  # noqa: S607
    return {name: (ROOT / name).read_text() for name in listed.stdout.split()}


PAGES = _pages()
README, COMPRESSOR = PAGES["README.md"], PAGES["compressor/README.md"]
MADE = [(block.page, block.name) for block in BLOCKS]
DRAWN = [(page, Path(path).name) for page, text in PAGES.items() for path in re.findall(r"!\[.*?\]\((.*?)\)", text)]
EACH = pytest.mark.parametrize("page", PAGES)


def _rows(page: str) -> Iterator[list[str]]:
    """Yield the cells of every row of every table."""
    for line in re.sub(r"^```.*?^```", "", PAGES[page], flags=re.MULTILINE | re.DOTALL).splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def _explained(name: str) -> list[str]:
    """Return the pages on which a table's row or a heading is about `name`, once per row or heading."""
    rows = [page for page in PAGES for cells in _rows(page) if name in re.findall(r"`([^`]+)`", cells[0])]
    return rows + [page for page, text in PAGES.items() for _ in re.findall(rf"^#+ .*`{re.escape(name)}`", text, re.M)]


def _anchors(page: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", PAGES[page], re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_generated_blocks_are_fresh() -> None:
    stale = [str(path) for path, text in refreshed(BLOCKS).items() if path.read_text() != text]
    assert stale == [], "run: make pages"


def test_every_block_of_every_page_is_known() -> None:
    written = [(page, name) for page, text in PAGES.items() for name in re.findall("<!-- generated: (.*?) -->", text)]
    assert sorted(written) == sorted((block.page, block.name) for block in BLOCKS)


@pytest.mark.parametrize(("page", "what"), [*MADE, *DRAWN], ids=lambda value: Path(value).name)
def test_what_makes_a_figure_is_named_on_its_page(page: str, what: str) -> None:
    assert f"`{MADE_BY[what]}" in PAGES[page]


@pytest.mark.parametrize("panel", PLOTS)
def test_the_plots_are_fresh_and_shown(panel: str) -> None:
    path = PLOTS[panel]
    assert results_sha256() in path.read_text(), "run: make pages"
    assert f"(results/{path.name})" in PAGES["compressor/experiments/README.md"]


def test_the_speed_of_the_frontier_was_measured() -> None:
    measured = json.loads(DECODING.read_text())["tokens_per_second"]
    frontier = {experiment.name for experiment in frontier_experiments()}
    assert measured.keys() == frontier, "run: python -m compressor.experiments decoding --books DIR"


def test_the_first_page_is_short() -> None:
    assert len(README.splitlines()) <= FIRST_PAGE_LINES


@EACH
def test_tables_fit_a_screen(page: str) -> None:
    lines = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.MULTILINE | re.DOTALL).splitlines()
    assert [line for line in lines if line.startswith("|") and len(line) > SCREEN] == []


@EACH
def test_every_row_has_the_columns_of_its_head(page: str) -> None:
    columns = 0
    for line in PAGES[page].splitlines():
        if not line.startswith("| "):
            columns = 0
            continue
        cells = len(re.findall(r"(?<!\\)\|", line))
        columns = columns or cells
        assert cells == columns, line


@EACH
def test_every_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        name = str(file.resolve().relative_to(ROOT))
        assert not anchor or anchor in _anchors(name), target


@EACH
def test_every_page_but_the_first_is_linked_from_it(page: str) -> None:
    assert page == "README.md" or f"]({page})" in README


@EACH
def test_every_file_that_is_named_exists(page: str) -> None:
    text = re.sub(r"^```json.*?^```", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    named = re.findall(r"(?<![\w./-])(?:compressor|docker|k8s|service|tests)/[\w./-]*\w", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("experiment", experiments(), ids=lambda experiment: experiment.name)
def test_every_experiment_has_an_up_to_date_result(experiment: Experiment) -> None:
    assert experiment.result() is not None


def _commands() -> list[str]:
    """Return every command, those of groups with the group's name before them."""
    groups = [("", cli)] + [(f"{group.name} ", group.typer_instance) for group in cli.registered_groups]
    named = [(prefix, command) for prefix, app in groups if app for command in app.registered_commands]
    return [f"{prefix}{c.name or c.callback.__name__}" for prefix, c in named if c.callback]


@pytest.mark.parametrize("command", _commands())
def test_every_command_is_explained_once(command: str) -> None:
    assert len(_explained(f"ttgpt {command}")) == 1


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_described_as_it_is(name: str) -> None:
    assert f"| `{name}` | {PRESETS[name].ratio:g} | {PRESETS[name].heal_tokens:,} |" in COMPRESSOR


def test_the_length_of_the_text_is_the_measured_one() -> None:
    measured = [result for experiment in compressions() if (result := experiment.result())]
    assert {f"{result['quality']['tokens'] + 1:,}" for result in measured} == {"6,864"}
    assert "(6,864 tokens, context 512, stride 512)" in PAGES["compressor/experiments/README.md"]


@pytest.mark.parametrize("name", [*METHODS, *FORMATS])
def test_every_method_and_format_is_explained(name: str) -> None:
    assert "compressor/README.md" in _explained(name)


def test_every_route_is_explained_once(tiny_artifact: Path) -> None:
    paths = create_app(Settings(models=(tiny_artifact,))).openapi()["paths"]
    routes = [f"{verb.upper()} {path}" for path, verbs in paths.items() for verb in verbs]
    assert [route for route in routes if len(_explained(route)) != 1] == []


def test_every_field_of_a_text_is_explained_or_refused() -> None:
    """Where it stands in the table: in the column of its route."""
    page = PAGES["service/README.md"]
    refused = page[page.index("- **Refused**") :].partition("##")[0]
    columns = [{cells[i].strip("`") for cells in _rows("service/README.md") if len(cells) == 3} for i in (0, 1)]
    for model, column in ((CompletionRequest, columns[0]), (GenerateRequest, columns[1]), (Parameters, columns[1])):
        fields = set(model.model_fields) - {"parameters"}
        assert [name for name in sorted(fields - column) if f"`{name}`" not in refused] == []


@pytest.mark.parametrize("setting", Settings.model_fields)
def test_every_setting_is_explained_once_with_its_default(setting: str) -> None:
    name = f"`TTGPT_{setting.upper()}`"
    (page,) = _explained(name.strip("`"))
    (cells,) = (cells for cells in _rows(page) if cells[0] == name)
    assert cells[1] == FOUND_AT_START.get(setting, _said(Settings.model_fields[setting].default))


def _said(default: object) -> str:
    """Return how a table writes a default."""
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default or "none")


def _metrics() -> dict[str, set[str]]:
    """Return the labels of every metric."""
    counters = {f"{name}_total": labels for name, labels in COUNTERS.items()}
    return {**GAUGES, **counters, **{name: labels for name, (labels, _) in HISTOGRAMS.items()}}


@pytest.mark.parametrize("metric", _metrics())
def test_every_metric_is_explained_once_with_its_labels(metric: str) -> None:
    name = f"`ttgpt_{metric}`"
    (page,) = _explained(name.strip("`"))
    (cells,) = (cells for cells in _rows(page) if cells[0] == name)
    labels = {"model_name" if label == "model" else label.strip("`") for label in cells[1].split(", ") if label}
    assert labels == _metrics()[metric]
