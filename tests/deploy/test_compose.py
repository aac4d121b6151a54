"""docker-compose.yml: valid, and in agreement with the images, the settings and the files it mounts."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.http.app import create_app
from service.settings import Settings
from tests.benchmarks import sizing
from tests.deploy.build_script import run
from tests.deploy.dockerfile import stages
from tests.deploy.manifests import ROOT
from tests.tools import debian_program

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SCRAPES = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())["scrape_configs"]


def _variables(service: str) -> dict[str, str]:
    """Return a service's environment with every ${NAME:-default} at its default."""
    variables = SERVICES[service].get("environment", {})
    return {key: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value)) for key, value in variables.items()}


def _mounts(service: str) -> dict[str, str]:
    """Return what is mounted, by where."""
    return {mount.split(":")[1]: mount.split(":")[0] for mount in SERVICES[service].get("volumes", [])}


def test_it_is_valid() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    run = subprocess.run([*command, ROOT / "docker-compose.yml"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


def test_all_that_is_needed_is_there() -> None:
    assert {"compressor", "service", "redis", "prometheus", "grafana"} == SERVICES.keys()


def test_the_settings_are_valid() -> None:
    environment = stages("service")[""].pairs("ENV") | _variables("service")
    own = {key.removeprefix("TTGPT_").lower(): value for key, value in environment.items() if key.startswith("TTGPT_")}
    assert own.keys() <= Settings.model_fields.keys()
    Settings(**own)  # type: ignore[arg-type]


def test_the_cache_is_found_by_the_setting_for_it() -> None:
    assert _variables("service")["TTGPT_REDIS_URL"].startswith("redis://redis:6379")


def test_both_see_the_same_models() -> None:
    (written,) = [where for where, what in _mounts("compressor").items() if what == "models"]
    assert _mounts("service") == {written: "models"}
    assert "models:/models:ro" in SERVICES["service"]["volumes"]
    assert "models" in COMPOSE["volumes"]
    assert SERVICES["service"]["depends_on"]["compressor"]["condition"] == "service_completed_successfully"


CHOICES: list[tuple[dict[str, str], str]] = [
    ({}, "gpt2-mini-method-quantize"),
    ({"OPTIONS": "--method  tensorgpt --rank 2"}, "gpt2-mini-method-tensorgpt-rank-2"),
    ({"OPTIONS": "--preset balanced"}, "gpt2-mini-preset-balanced"),
    ({"MODEL": "openai-community/gpt2"}, "openai-community-gpt2-method-quantize"),
]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def test_every_choice_is_compressed_once_into_a_folder_that_is_named_after_it(models: Path) -> None:
    for choice, name in CHOICES:
        variables = _variables("compressor") | choice
        first, again = (run(SERVICES["compressor"]["entrypoint"], variables, models) for _ in range(2))
        options = " ".join(variables["OPTIONS"].split())
        assert (first.stdout, first.stderr) == (f"compress {variables['MODEL']} {options} --out {models / name}\n", "")
        assert (again.returncode, again.stdout) == (0, "")
    assert {path.name for path in models.iterdir()} == {name for _, name in CHOICES}


@pytest.mark.parametrize(("choice", "name"), CHOICES)
def test_the_service_serves_what_was_chosen(models: Path, choice: dict[str, str], name: str) -> None:
    ran = run(SERVICES["service"]["entrypoint"], _variables("service") | choice, models)
    assert ran.stdout == f"-m service {models / name}\n"


def test_the_service_is_started_anew_by_another_choice() -> None:
    """Compose starts a container anew if what it is made of changes, its environment included."""
    chosen = {key: SERVICES["service"]["environment"][key] for key in ("MODEL", "OPTIONS")}
    assert all(re.fullmatch(r"\$\{(\w+):-.+\}", value) for value in chosen.values())
    assert chosen.items() <= SERVICES["compressor"]["environment"].items()


def test_the_entry_point_is_the_images() -> None:
    assert "exec python -m service" in SERVICES["service"]["entrypoint"][-1]
    assert stages("service")[""].command("ENTRYPOINT") == ["python", "-m", "service"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_has_limits(name: str) -> None:
    """Without them there is neither a memory limit nor throttling to be seen or warned of."""
    memory, cpus = (re.sub(r"\$\{\w+:-(.+)\}", r"\1", str(SERVICES[name][key])) for key in ("mem_limit", "cpus"))
    (size,) = (re.fullmatch(r"/tmp:size=(\w+)", entry) for entry in SERVICES[name]["tmpfs"])  # noqa: S108
    assert size is not None
    assert 0 < _bytes(size[1]) <= _bytes(memory) / 4
    assert float(cpus) > 0


def test_the_limits_are_enough() -> None:
    rows = {(row["model"], row["preset"]): row for row in sizing.read()["rows"]}
    needed = max(sizing.request_mib(rows[key]) for key in (("gpt2-mini", "int8"), ("GPT-2 124M", "int8")))
    memory, compressor = (
        re.sub(r"\$\{\w+:-(.+)\}", r"\1", SERVICES[name]["mem_limit"]) for name in ("service", "compressor")
    )
    assert _bytes(memory) >= needed << 20
    assert _bytes(compressor) >= max(row["compress_bytes"] or 0 for row in rows.values())


def _bytes(size: str) -> int:
    return int(size[:-1]) << {"m": 20, "g": 30}[size[-1]]


@pytest.mark.parametrize("name", ["compressor", "service"])
def test_the_builds_exist(name: str) -> None:
    build = SERVICES[name]["build"]
    assert build["target"] in stages(Path(build["dockerfile"]).name.removesuffix(".Dockerfile"))
    assert build["args"].keys() == {"TORCH_INDEX", "PYTHON_IMAGE", "BUILD_IMAGE"}


@pytest.mark.parametrize("name", SERVICES)
def test_everything_is_locked_down(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["init"] is True  # so that a process without a handler yet is not deaf
    assert "no-new-privileges:true" in service["security_opt"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_images_of_others_are_pinned() -> None:
    foreign = [service["image"] for service in SERVICES.values() if "build" not in service]
    assert all(re.fullmatch(r"\$\{[A-Z]+_IMAGE:-[\w/]+:v?\d+\.\d+.*\}", image) for image in foreign)


def test_what_is_mounted_exists() -> None:
    folders = [what for name in SERVICES for what in _mounts(name).values() if what.startswith(".")]
    assert len(folders) == 3
    assert all((ROOT / folder).is_dir() for folder in folders)


def test_draining_fits_into_the_grace_period() -> None:
    drain = int(_variables("service").get("TTGPT_DRAIN_SECONDS", Settings.model_fields["drain_seconds"].default))
    assert int(SERVICES["service"]["stop_grace_period"].removesuffix("s")) >= 1.5 * drain


def test_prometheus_asks_the_service_where_it_is(tiny_artifact: Path) -> None:
    (job,) = SCRAPES
    (found,) = job["dns_sd_configs"]
    port = stages("service")[""].pairs("ENV")["TTGPT_PORT"]
    assert (found["names"], found["port"]) == (["service"], int(port))
    assert job.get("metrics_path", "/metrics") in create_app(Settings(models=(tiny_artifact,))).openapi()["paths"]
    assert SERVICES["service"]["ports"][0].endswith(f":{port}")


def test_prometheus_accepts_its_configuration(tmp_path: Path) -> None:
    promtool = debian_program("promtool", "prometheus")
    text = (ROOT / "docker/prometheus/prometheus.yml").read_text()
    (tmp_path / "prometheus.yml").write_text(text.replace("/etc/prometheus", str(ROOT / "docker/prometheus")))
    run = subprocess.run([promtool, "check", "config", tmp_path / "prometheus.yml"], capture_output=True, check=False)
    assert run.returncode == 0, run.stderr.decode()


def test_grafana_finds_prometheus_and_the_dashboards() -> None:
    provisioning = ROOT / "docker/grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/ttgpt.yml").read_text())["providers"]
    assert source["url"] == "http://prometheus:" + SERVICES["prometheus"]["ports"][0].rpartition(":")[2]
    mounts = _mounts("grafana")
    assert mounts["/etc/grafana/provisioning"] == "./docker/grafana/provisioning"
    assert mounts[provider["options"]["path"]] == "./docker/grafana/dashboards"
