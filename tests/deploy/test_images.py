"""The Dockerfiles: clean, non-root, without what the images must not hold, and made of files that exist."""

import re
import subprocess
import sysconfig
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from service.settings import Settings
from tests.deploy.dockerfile import Stage, dockerfiles, stages
from tests.deploy.manifests import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SERVICE = stages("service")[""]
COMPRESSOR = stages("compressor")["compressor"]
BOTH = pytest.mark.parametrize("stage", [SERVICE, COMPRESSOR], ids=["service", "compressor"])


@pytest.mark.parametrize("path", dockerfiles(), ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    run = subprocess.run([hadolint, path], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "")


@BOTH
def test_the_user_is_a_number_other_than_roots(stage: Stage) -> None:
    user = stage.last("USER") or ""
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


@BOTH
def test_the_labels_are_the_projects(stage: Stage) -> None:
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in stage.pairs("LABEL").items()}
    assert labels["licenses"] == PROJECT["license"]
    assert f"VERSION={PROJECT['version']}" in stage.every("ARG")
    assert {"title", "description", "version", "revision"} <= labels.keys()


def test_torch_comes_from_the_index_of_the_build_argument() -> None:
    build = stages("compressor")["build"]
    assert "TORCH_INDEX=https://download.pytorch.org/whl/cpu" in build.every("ARG")
    (install,) = (run for run in build.every("RUN") if "torch.txt" in run)
    assert '--index-url "${TORCH_INDEX}" --requirement torch.txt' in install
    assert [line for line in PROJECT["optional-dependencies"]["compressor"] if line.startswith("torch==")]
    assert "['compressor']" in install  # the extra


def test_of_torch_only_what_runs_is_kept(tmp_path: Path) -> None:
    """Removed where it is installed, because a later layer would only hide it."""
    (install,) = (run for run in stages("compressor")["build"].every("RUN") if "torch.txt" in run)
    removal = install[install.index("&& rm ") :].removeprefix("&& ")
    torch = tmp_path / "venv/lib/python3.11/site-packages/torch"
    kept = {"__init__.py", "lib/libtorch_cpu.so", "testing/__init__.py", "bin/torch_shm_manager"}
    for file in kept | {"include/ATen/ATen.h", "test/test_nn.py", "bin/protoc", "bin/test_api"}:
        (torch / file).parent.mkdir(parents=True, exist_ok=True)
        (torch / file).touch()
    subprocess.run(["/bin/sh", "-euc", removal.replace("/opt/venv", str(tmp_path / "venv"))], check=True)
    assert {str(path.relative_to(torch)) for path in torch.rglob("*") if path.is_file()} == kept


def test_the_docker_that_the_health_check_needs_is_named() -> None:
    assert "--start-interval=" in (SERVICE.last("HEALTHCHECK") or "")
    for place in ("docker/service.Dockerfile", "docker-compose.yml", "k8s/README.md"):
        assert "Docker 25 or later" in (ROOT / place).read_text(), place


def test_a_checkpoint_of_its_owners_only_becomes_an_artefact_for_all() -> None:
    """Docker gives the files of a build context to root, with the permissions that they have."""
    build = stages("compressor")["artifact-build"]
    assert build.last("USER") == "0:0"
    (made,) = (run for run in build.every("RUN") if "ttgpt compress" in run)
    assert made.endswith("&& chmod --recursive a+rX /models")


def test_the_service_needs_nothing_of_what_builds() -> None:
    needed = _closure([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["service"]])
    assert {"numpy", "fastapi", "safetensors", "tokenizers"} <= needed
    assert not {"torch", "opt-einsum", "transformers", "matplotlib", "joblib"} & needed


def _closure(lines: list[str]) -> set[str]:
    """Return the names of everything that pip installs for these requirements."""
    todo = [(line, "") for line in lines]
    seen: set[tuple[str, str]] = set()
    while todo:
        line, extra = todo.pop()
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(wanted.name)
        for chosen in {"", *wanted.extras}:
            if (name, chosen) not in seen:
                seen.add((name, chosen))
                todo += [(further, chosen) for further in requires(name) or ()]
    return {name for name, _ in seen}


@pytest.mark.parametrize("name", ["service", "compressor"])
def test_the_compiler_stays_in_the_build_stage(name: str) -> None:
    found = stages(name)
    assert "slim" not in found["build"].image  # the slim image has no compiler
    assert {stage.image for stage in found.values() if stage.parent is None and "python" in stage.image} == {
        found["build"].image,
        found[name].image,
    }
    assert "slim" in found[name].image


@BOTH
def test_the_final_stage_installs_nothing(stage: Stage) -> None:
    assert not [run for run in stage.every("RUN") if re.search(r"\b(apt-get|pip|apk|gcc)\b", run)]
    assert stage.every("COPY") == ["--from=build /opt/venv /opt/venv"]


def test_every_copied_file_is_in_the_build_context() -> None:
    kept = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    copied = {
        source
        for name in ("service", "compressor")
        for stage in stages(name).values()
        for copy in stage.every("COPY")
        if not copy.startswith("--from")
        for source in copy.split()[:-1]
    }
    assert copied == set(kept)
    assert [name for name in kept if not (ROOT / name).exists()] == []


def test_the_environment_is_made_of_settings() -> None:
    environment = SERVICE.pairs("ENV")
    own = {key.removeprefix("TTGPT_").lower() for key in environment if key.startswith("TTGPT_")}
    assert own <= Settings.model_fields.keys()
    assert SERVICE.last("EXPOSE") == environment["TTGPT_PORT"]
    assert environment["MALLOC_ARENA_MAX"] == "2"


def test_the_artefact_is_where_the_service_looks() -> None:
    build, image = stages("compressor")["artifact-build"], stages("compressor")[""]
    (name,) = (argument.removeprefix("NAME=") for argument in build.every("ARG") if argument.startswith("NAME="))
    assert SERVICE.pairs("ENV")["TTGPT_MODELS"] == f"/models/{name}"
    assert image.every("COPY") == ["--from=artifact-build /models /models"]
    assert stages("service")["baked"].every("COPY")[-1] == "--from=artifact /models /models"
