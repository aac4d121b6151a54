"""docker-compose.yml: valid, and in agreement with the images, the settings and the files it mounts."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.app import create_app
from service.settings import Settings
from tests.deploy.build_script import run_twice
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
    assert Settings(**own).models == (Path(_variables("compressor")["OUT"]),)  # type: ignore[arg-type]


def test_the_cache_is_found_by_the_setting_for_it() -> None:
    assert _variables("service")["TTGPT_REDIS_URL"].startswith("redis://redis:6379")


def test_both_see_the_same_models() -> None:
    (written,) = [where for where, what in _mounts("compressor").items() if what == "models"]
    assert _mounts("service") == {written: "models"}
    assert "models:/models:ro" in SERVICES["service"]["volumes"]
    assert "models" in COMPOSE["volumes"]
    assert SERVICES["service"]["depends_on"]["compressor"]["condition"] == "service_completed_successfully"


def test_it_compresses_once(tmp_path: Path) -> None:
    command = [word.replace("$$", "$") for word in SERVICES["compressor"]["entrypoint"]]
    told, out = run_twice(command, _variables("compressor"), tmp_path)
    assert told == [f"compress gpt2-mini --method quantize --out {out}", ""]


@pytest.mark.parametrize("name", ["compressor", "service"])
def test_the_builds_exist(name: str) -> None:
    build = SERVICES[name]["build"]
    assert build["target"] in stages(Path(build["dockerfile"]).name.removesuffix(".Dockerfile"))
    assert build["args"].keys() == {"TORCH_INDEX"}


@pytest.mark.parametrize("name", SERVICES)
def test_everything_is_locked_down(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_images_of_others_are_pinned() -> None:
    foreign = [service["image"] for service in SERVICES.values() if "build" not in service]
    assert all(re.search(r":v?\d+\.\d+", image) for image in foreign)


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
