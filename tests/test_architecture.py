"""The import arrows: which module may import which, read from the sources."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Rooms: the modules and packages of a package. Each layer may import itself and those above it.
COMPRESSOR = [
    {"errors", "figures", "pages", "plot", "process", "progress", "display", "storage"},
    {"artifact", "dashboard"},
    {"runtime"},
    {"bench"},
    {"tensors"},
    {"codecs"},
    {"formats"},
    {"gpt2"},
    {"finite", "stored"},
    {"evaluation", "huggingface", "methods"},
    {"recipes", "vocab"},
    {"pretraining"},
    {"experiments"},
    {"cli"},
    {"__main__"},
]
SERVICE = [
    {"chat_template", "errors", "process", "redis_parser", "redis_url"},
    {"settings", "metrics", "engine"},
    {"cache"},
    {"http"},
    {"server"},
    {"__main__"},
]
SERVICE_MAY_IMPORT = {"artifact", "errors", "process", "runtime"}


def _imports(path: Path) -> set[str]:
    """Return the dotted names that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _unit(path: Path) -> str:
    """Return the room of its package that a file belongs to."""
    return path.relative_to(ROOT).parts[1].removesuffix(".py")


def _units(names: set[str], package: str) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith(f"{package}.")}


@pytest.mark.parametrize("path", _modules("compressor") + _modules("service"), ids=str)
def test_arrows_between_rooms_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    layers, unit = (COMPRESSOR if package == "compressor" else SERVICE), _unit(path)
    if unit == "__init__":
        assert not _units(_imports(path), package)
        return
    level = next(i for i, layer in enumerate(layers) if unit in layer)
    allowed = set.union(*layers[: level + 1]) | {"__version__"}
    assert _units(_imports(path), package) <= allowed


@pytest.mark.parametrize("path", _modules("service/http"), ids=str)
def test_the_twins_know_what_they_share_and_nothing_of_each_other(path: Path) -> None:
    twins = {"openai", "tgi"}
    inside = path.relative_to(ROOT / "service/http").parts[0]
    known = {name.split(".")[2] for name in _imports(path) if name.startswith("service.http.")} & twins
    assert known <= ({inside} if inside in twins else twins if inside == "app.py" else set())


def test_the_compressor_never_imports_the_service() -> None:
    assert not [path for path in _modules("compressor") if any(n.startswith("service") for n in _imports(path))]


@pytest.mark.parametrize("path", _modules("service"), ids=str)
def test_the_service_imports_only_what_it_runs(path: Path) -> None:
    assert _units(_imports(path), "compressor") <= SERVICE_MAY_IMPORT


@pytest.mark.parametrize("path", _modules("compressor") + _modules("service"), ids=str)
def test_nothing_is_pickled(path: Path) -> None:
    imported = _imports(path)
    assert not {"pickle", "marshal", "shelve"} & {name.split(".")[0] for name in imported}
    assert "torch.load" not in path.read_text()


def test_the_service_loads_neither_transformers_nor_the_methods() -> None:
    code = "import sys, service.http.app; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(run.stdout.split())
    assert "service.http.app" in loaded
    assert not {"torch", "transformers", "typer", "compressor.formats", "compressor.methods"} & loaded


@pytest.mark.parametrize("room", ["artifact", "runtime", "bench", "cli"])
def test_what_runs_a_model_is_imported_without_torch(room: str) -> None:
    modules = [
        f"compressor.{room}",
        *(f"compressor.{room}.{path.stem}" for path in (ROOT / "compressor" / room).glob("[!_]*.py")),
    ]
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)".replace(", compressor.cli.compress", "")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"torch", "transformers", "safetensors.torch"} & set(run.stdout.split())


def test_the_top_level_holds_what_it_should() -> None:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT).stdout  # noqa: S607
    visible = {name.split("/")[0] for name in listed.split()}
    allowed = {"pyproject.toml", "README.md", "LICENSE", "Makefile", "docker-compose.yml"}
    allowed |= {"service", "compressor", "docker", "k8s", "tests"}
    assert {name for name in visible if not name.startswith(".")} <= allowed
