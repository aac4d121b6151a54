"""The manifests agree with the service: its settings, routes, ports, figures and artefact, and with each other."""

import math
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from service.http.app import create_app
from service.metrics import Metrics
from service.settings import Settings
from tests.benchmarks import sizing
from tests.deploy.build_script import run
from tests.deploy.dockerfile import stages
from tests.deploy.manifests import ROOT, combined, container, one, pod, pods, rendered, requested, settings_map

OVERLAYS = pytest.mark.parametrize("overlay", ["overlays/dev", "overlays/prod"])
(MEASURED,) = (row for row in sizing.read()["rows"] if (row["model"], row["preset"]) == ("gpt2-mini", "int8"))


def _settings(overlay: str) -> Settings:
    """Return the settings that the service in a pod would read."""
    return Settings(**{key.removeprefix("TTGPT_").lower(): v for key, v in settings_map(rendered(overlay)).items()})  # type: ignore[arg-type]


@OVERLAYS
def test_every_variable_is_a_setting(overlay: str) -> None:
    own = list(settings_map(rendered(overlay))) + [variable["name"] for variable in container(rendered(overlay))["env"]]
    assert {name.removeprefix("TTGPT_").lower() for name in own} <= Settings.model_fields.keys()
    assert _settings(overlay).port > 0


@OVERLAYS
def test_no_secret_is_a_plain_setting(overlay: str) -> None:
    assert not [name for name in settings_map(rendered(overlay)) if re.search("KEY|TOKEN|PASSWORD|SECRET", name)]
    (secret,) = (s["secretRef"] for s in container(rendered(overlay))["envFrom"] if "secretRef" in s)
    assert secret["optional"] is True


@OVERLAYS
def test_the_cache_is_found_by_the_setting_for_it(overlay: str) -> None:
    redis = one(rendered(overlay), "Service", "redis")
    address = f"redis://{redis['metadata']['name']}:{redis['spec']['ports'][0]['port']}"
    assert settings_map(rendered(overlay))["TTGPT_REDIS_URL"].startswith(address)


@OVERLAYS
def test_the_port_is_the_same_everywhere(overlay: str) -> None:
    manifests = rendered(overlay)
    (port,) = container(manifests)["ports"]
    assert port["containerPort"] == _settings(overlay).port == int(stages("service")[""].last("EXPOSE") or 0)
    (public,) = one(manifests, "Service")["spec"]["ports"]
    assert public["targetPort"] == port["name"]
    (opened,) = one(manifests, "NetworkPolicy")["spec"]["ingress"][0]["ports"]
    assert opened["port"] == port["name"]


@OVERLAYS
def test_the_probes_ask_routes_that_exist(overlay: str, tiny_artifact: Path) -> None:
    routes = create_app(Settings(models=(tiny_artifact,))).openapi()["paths"]
    service = container(rendered(overlay))
    probes = {kind: service[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")}
    assert {kind: probe["httpGet"]["path"] for kind, probe in probes.items()} == {
        "startup": "/startupz",
        "liveness": "/livez",
        "readiness": "/readyz",
    }
    for probe in probes.values():
        assert "get" in routes[probe["httpGet"]["path"]]
        assert probe["httpGet"]["port"] == service["ports"][0]["name"]
    assert probes["startup"]["periodSeconds"] * probes["startup"]["failureThreshold"] >= 10 * MEASURED["start_seconds"]
    assert probes["readiness"]["failureThreshold"] == 1  # a draining pod gets no more requests at once


@OVERLAYS
def test_draining_fits_into_the_grace_period(overlay: str) -> None:
    pre_stop = container(rendered(overlay))["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = pod(rendered(overlay))["terminationGracePeriodSeconds"]
    assert grace >= math.ceil(1.5 * (_settings(overlay).drain_seconds + pre_stop))


@OVERLAYS
def test_what_was_measured_fits(overlay: str) -> None:
    memory = container(rendered(overlay))["resources"]["limits"]["memory"]
    assert memory == f"{sizing.request_mib(MEASURED)}Mi"
    assert MEASURED["drain_seconds"] < _settings(overlay).drain_seconds


def test_compressing_fits_into_the_job() -> None:
    (writer,) = one(rendered("base"), "Job", "ttgpt-compress")["spec"]["template"]["spec"]["containers"]
    peaks = [row["compress_bytes"] for row in sizing.read()["rows"] if row["compress_bytes"]]
    assert int(writer["resources"]["limits"]["memory"].removesuffix("Gi")) << 30 >= max(peaks)


@OVERLAYS
def test_cores_are_whole_and_threads_are_the_cores(overlay: str) -> None:
    service = container(rendered(overlay))
    requests, limits = service["resources"]["requests"], service["resources"]["limits"]
    assert requests == limits or overlay == "overlays/dev"  # where the node is shared with the Job
    assert int(limits["cpu"]) >= 1
    (threads,) = (variable for variable in service["env"] if variable["name"] == "TTGPT_THREADS")
    assert threads["valueFrom"]["resourceFieldRef"] == {"containerName": service["name"], "resource": "limits.cpu"}


@OVERLAYS
def test_the_artefact_is_put_where_the_service_looks(overlay: str) -> None:
    (models,) = _settings(overlay).models
    (mount,) = (m for m in container(rendered(overlay))["volumeMounts"] if m["name"] == "models")
    assert models.parent == Path(mount["mountPath"])
    assert mount["readOnly"] is True


def test_production_copies_the_artefact_out_of_its_image() -> None:
    manifests = rendered("overlays/prod")
    (init,) = pod(manifests)["initContainers"]
    (target,) = (m["mountPath"] for m in init["volumeMounts"] if m["name"] == "models")
    (models,) = _settings("overlays/prod").models
    assert init["image"].startswith("ttgpt-artifact:")
    assert f"cp -R /models/. {target} " in init["command"][-1]
    assert f"NAME={models.name}" in stages("compressor")["artifact"].every("ARG")
    assert not {"Job", "PersistentVolumeClaim"} & {m["kind"] for m in manifests}


@pytest.mark.parametrize("overlay", ["base", "overlays/dev"])
def test_the_job_writes_what_the_pods_wait_for_and_read(overlay: str) -> None:
    manifests = rendered(overlay)
    (config,) = (
        source["configMapRef"]["name"] for source in container(manifests)["envFrom"] if "configMapRef" in source
    )
    (waiting,) = pod(manifests)["initContainers"]
    assert waiting["envFrom"] == [{"configMapRef": {"name": config}}]
    assert "$TTGPT_MODELS/manifest.json" in waiting["command"][-1]
    job = one(manifests, "Job", "ttgpt-compress")["spec"]
    (writer,) = job["template"]["spec"]["containers"]
    (out,) = (variable["valueFrom"] for variable in writer["env"] if variable["name"] == "OUT")
    assert out == {"configMapKeyRef": {"name": config, "key": "TTGPT_MODELS"}}
    assert job["ttlSecondsAfterFinished"] > 0  # its template cannot be changed while it is there
    claim = one(manifests, "PersistentVolumeClaim", "ttgpt-models")["metadata"]["name"]
    for spec in (job["template"]["spec"], pod(manifests)):
        (volume,) = (v for v in spec["volumes"] if v["name"] == "models")
        assert volume["persistentVolumeClaim"]["claimName"] == claim
    places = {c["volumeMounts"][0]["mountPath"] for c in (writer, waiting, container(manifests))}
    assert places == {str(_settings(overlay).models[0].parent)}


def test_the_job_compresses_once_and_refuses_to_pass_one_artefact_off_as_another(tmp_path: Path) -> None:
    (writer,) = one(rendered("base"), "Job", "ttgpt-compress")["spec"]["template"]["spec"]["containers"]
    given = {variable["name"]: variable["value"] for variable in writer["env"] if "value" in variable}
    out = tmp_path / "models/gpt2-mini-int8"
    out.parent.mkdir()
    first, again, other = (
        run(writer["command"], given | {"OUT": str(out)} | changed, out.parent)
        for changed in ({}, {}, {"OPTIONS": "--preset small"})
    )
    assert (first.returncode, first.stdout) == (0, f"compress gpt2-mini --method quantize --out {out}\n")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert (other.returncode, other.stdout) == (2, "")
    assert "was made of gpt2-mini --method quantize, not of gpt2-mini --preset small" in other.stderr


NODE_CORES, NODE_MEMORY = 2.0, 4 << 30
# What a cluster of one node takes for itself: control plane, names and network (950m on kind), and the kubelet's own.
RESERVED_CORES, RESERVED_MEMORY = 1.0, 1 << 30


def test_everything_of_development_has_room_on_a_small_node_in_any_order() -> None:
    """In sum, so whichever pod is placed first; and no update starts a second one beside the first."""
    cores = memory = 0.0
    for manifest in rendered("overlays/dev"):
        if "template" not in manifest.get("spec", {}):
            continue
        surges = manifest["kind"] == "Deployment" and manifest["spec"]["strategy"] != {"type": "Recreate"}
        assert (manifest["spec"].get("replicas", 1), surges) == (1, False)
        requests = requested(manifest["spec"]["template"]["spec"])
        cores, memory = cores + requests[0], memory + requests[1]
    assert cores <= NODE_CORES - RESERVED_CORES
    assert memory <= NODE_MEMORY - RESERVED_MEMORY


def test_the_job_goes_where_the_service_has_mounted_the_volume() -> None:
    """Else a pod that waits for the artefact on one node keeps the volume from the Job on another."""
    manifests = rendered("overlays/dev")
    job = one(manifests, "Job", "ttgpt-compress")["spec"]["template"]["spec"]
    (rule,) = job["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    labels = one(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert rule["labelSelector"]["matchLabels"].items() <= labels.items()
    assert rule["topologyKey"] == "kubernetes.io/hostname"


def test_a_volume_is_given_its_group_by_whichever_pod_mounts_it_first() -> None:
    """A `local` volume gets the fsGroup once, from the first pod, and from none whose claim is read-only."""
    manifests = rendered("overlays/dev")
    job = one(manifests, "Job", "ttgpt-compress")["spec"]["template"]["spec"]
    for spec in (job, pod(manifests)):
        (claim,) = (volume["persistentVolumeClaim"] for volume in spec["volumes"] if volume["name"] == "models")
        assert not claim.get("readOnly")
        assert spec["securityContext"]["fsGroup"] == job["securityContext"]["runAsGroup"]
    for reader in (*pod(manifests)["initContainers"], container(manifests)):
        (mount,) = (mount for mount in reader["volumeMounts"] if mount["name"] == "models")
        assert mount["readOnly"] is True


@OVERLAYS
def test_what_hangs_is_ended_soon_and_what_drains_is_not(overlay: str) -> None:
    manifests = rendered(overlay)
    pre_stop = container(manifests)["lifecycle"]["preStop"]["sleep"]["seconds"]
    for _, template in pods(manifests):
        for each in template["spec"]["containers"]:
            if probe := each.get("livenessProbe"):
                default = template["spec"].get("terminationGracePeriodSeconds", 30)
                assert pre_stop < probe.get("terminationGracePeriodSeconds", default) <= 30


@OVERLAYS
def test_the_pods_are_the_images_users(overlay: str) -> None:
    context = pod(rendered(overlay))["securityContext"]
    user = f"{context['runAsUser']}:{context['runAsGroup']}"
    assert {user} == {stages("service")[""].last("USER"), stages("compressor")["compressor"].last("USER")}


@OVERLAYS
def test_our_images_have_the_projects_version(overlay: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = [c["image"] for c in [*pod(rendered(overlay))["initContainers"], container(rendered(overlay))]]
    assert {image.partition(":")[2] for image in images} == {version}


@OVERLAYS
def test_every_selector_finds_its_pods(overlay: str) -> None:
    manifests = rendered(overlay)
    labels = {name: template["metadata"]["labels"] for name, template in pods(manifests)}
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert one(manifests, kind)["spec"]["selector"]["matchLabels"].items() <= labels["ttgpt"].items()
    for name in ("ttgpt", "redis"):
        assert one(manifests, "Service", name)["spec"]["selector"].items() <= labels[name].items()
        assert (
            one(manifests, "NetworkPolicy", name)["spec"]["podSelector"]["matchLabels"].items() <= labels[name].items()
        )


@OVERLAYS
def test_the_network_is_closed_but_for_what_is_needed(overlay: str) -> None:
    manifests = rendered(overlay)
    closed = one(manifests, "NetworkPolicy", "default-deny")["spec"]
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    outward = one(manifests, "NetworkPolicy")["spec"]["egress"]
    assert {port["port"] for rule in outward for port in rule["ports"]} == {"redis", 53}
    assert all(rule["to"] for rule in outward)
    redis = one(manifests, "NetworkPolicy", "redis")["spec"]
    assert "egress" not in redis
    (only,) = redis["ingress"][0]["from"]
    assert only["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "ttgpt"}


def test_production_has_three_replicas_that_scale_and_spread() -> None:
    manifests = rendered("overlays/prod")
    scaler = one(manifests, "HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "ttgpt"}
    assert (scaler["minReplicas"], scaler["metrics"][0]["resource"]["name"]) == (3, "cpu")
    assert one(manifests, "PodDisruptionBudget")["spec"]["maxUnavailable"] < scaler["minReplicas"]
    assert "replicas" not in one(manifests, "Deployment")["spec"]
    spread = {rule["topologyKey"] for rule in pod(manifests)["topologySpreadConstraints"]}
    assert spread == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}


def test_development_has_one_replica_that_does_not_scale() -> None:
    manifests = rendered("overlays/dev")
    assert one(manifests, "Deployment")["spec"]["replicas"] == 1
    assert one(manifests, "Deployment")["spec"]["strategy"] == {"type": "Recreate"}  # one node mounts the volume
    assert "HorizontalPodAutoscaler" not in {m["kind"] for m in manifests}


def test_a_component_follows_the_images_of_its_overlay(tmp_path: Path) -> None:
    images = "images: [{name: ttgpt-artifact, newName: elsewhere/artifact, newTag: '7'}]\n"
    spec = pod(combined(tmp_path, "image-volume", images))
    assert "initContainers" not in spec
    assert spec["volumes"][0]["image"]["reference"] == "elsewhere/artifact:7"


def test_an_image_volume_is_mounted_as_a_whole(tmp_path: Path) -> None:
    """By its root, because parts of an image can be mounted by newer container runtimes only."""
    (mount,) = (m for m in container(combined(tmp_path, "image-volume"))["volumeMounts"] if m["name"] == "models")
    assert not {"subPath", "subPathExpr"} & mount.keys()
    image = stages("compressor")[""]
    assert image.every("COPY") == [f"--from=artifact-build {mount['mountPath']} {mount['mountPath']}"]
    (link,) = image.every("RUN")
    root = tmp_path / "root"
    (root / "models/NAME").mkdir(parents=True)
    script = re.sub(r' "/\$', f' "{root}/$', link)
    subprocess.run(["/bin/sh", "-c", script], env={"NAME": "NAME", "PATH": "/usr/bin:/bin"}, check=True)
    assert (root / "NAME").resolve() == root / "models/NAME"
    (tmp_path / "mounted").mkdir()
    moved = root.rename(tmp_path / "mounted/models")
    assert (moved / "NAME").resolve() == moved / "models/NAME"  # wherever it is mounted


def test_requests_in_flight_scale_in_place_of_the_cpu(tmp_path: Path) -> None:
    manifests = combined(tmp_path, "queue-autoscaling")
    assert "HorizontalPodAutoscaler" not in {m["kind"] for m in manifests}
    scaler = one(manifests, "ScaledObject")["spec"]
    assert scaler["scaleTargetRef"]["name"] == one(manifests, "Deployment")["metadata"]["name"]
    prod = one(rendered("overlays/prod"), "HorizontalPodAutoscaler")["spec"]
    assert (scaler["minReplicaCount"], scaler["maxReplicaCount"]) == (prod["minReplicas"], prod["maxReplicas"])
    (trigger,) = scaler["triggers"]
    asked = {"ttgpt_num_requests_running", "ttgpt_num_requests_waiting"}
    assert set(re.findall(r"ttgpt_\w+", trigger["metadata"]["query"])) == asked
    assert asked <= {metric.name for metric in Metrics().registry.collect()}
    assert float(trigger["metadata"]["threshold"]) < _settings("overlays/prod").max_batch  # before requests wait


def test_prometheus_finds_the_service(tmp_path: Path, tiny_artifact: Path) -> None:
    manifests = combined(tmp_path, "monitoring")
    monitor, service = one(manifests, "ServiceMonitor")["spec"], one(manifests, "Service")
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] == service["spec"]["ports"][0]["name"]
    assert endpoint["path"] in create_app(Settings(models=(tiny_artifact,))).openapi()["paths"]


def test_grafana_gets_the_dashboards_of_the_folder(tmp_path: Path) -> None:
    dashboards = one(combined(tmp_path, "monitoring"), "ConfigMap", "ttgpt-dashboards")
    assert dashboards["metadata"]["labels"]["grafana_dashboard"] == "1"
    committed = {path.name for path in (ROOT / "docker/grafana/dashboards").glob("*.json")}
    assert set(dashboards.get("data", {})) == committed
