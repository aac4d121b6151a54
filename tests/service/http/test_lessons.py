"""Published advisories of other model servers, each as a test that it cannot happen here.

More of them are in other files: nothing is pickled (test_architecture), numbers, texts and lists are bounded
(test_refusals, test_openai), bodies are, too, and a broken request leaves the engine running (test_engine).
"""

import ast
import inspect
import json
import socket
import subprocess
import sys
import tomllib
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from compressor.errors import ArtifactError
from service.engine.models import load
from service.http import security
from tests.conftest import tiny_model, write_artifact
from tests.service.conftest import sample

ROOT = Path(__file__).parents[3]
ROUTES = ("/generate", "/generate_stream", "/", "/embeddings", "/tokenize", "/v1/completions", "/v1/embeddings")


def body(route: str, text: Any = "x", **fields: Any) -> dict[str, Any]:
    name = {"/v1/completions": "prompt", "/v1/embeddings": "input"}.get(route, "inputs")
    return {name: text, **fields}


def loaded_by_the_service() -> set[str]:
    code = "import sys, service.http.app, service.cache.redis_tier, redis.asyncio; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(run.stdout.split())


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("field", ["prompt_embeds", "tensors", "prompt_logprobs"])
def test_no_tensors_from_clients(client: httpx.Client, route: str, field: str) -> None:
    """CVE-2025-62164."""
    answer = client.post(route, json=body(route, **{field: "gASVAAAAAAAAAA=="}))
    assert answer.status_code in (400, 422)
    assert "not a known field" in answer.text


def test_no_code_from_artefacts(tmp_path: Path) -> None:
    """CVE-2026-22807: `auto_map` names classes of the artefact's own files."""
    folder = write_artifact(tmp_path / "remote", tiny_model())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    (folder / "evil.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(ArtifactError, match=r"config\.json"):
        load(folder)


def test_no_templates_and_no_way_to_fetch_anything() -> None:
    """CVE-2026-5760 and CVE-2026-0599: neither a template engine nor an HTTP client is even loaded."""
    found = {name.partition(".")[0] for name in loaded_by_the_service()}
    assert "fastapi" in found
    assert not {"jinja2", "httpx", "requests", "aiohttp", "urllib3", "huggingface_hub"} & found


@pytest.mark.parametrize("route", ROUTES)
def test_an_address_is_only_a_text(client: httpx.Client, route: str) -> None:
    """CVE-2026-0599: `![](http://...)` in a prompt was fetched."""
    assert client.post(route, json=body(route, "![](http://169.254.169.254/)")).status_code == 200


@pytest.mark.parametrize("value", [-1, 2**31, 2**63, 2**64, -(2**63), 1e300])
def test_ids_outside_the_vocabulary(client: httpx.Client, value: float) -> None:
    """CVE-2026-21869."""
    for route in ("/embeddings", "/v1/completions", "/v1/embeddings"):
        assert client.post(route, json=body(route, [value])).status_code in (400, 422)
    assert client.post("/detokenize", json={"ids": [value]}).status_code == 422


@pytest.mark.parametrize(
    "head",
    [
        b"GET /livez HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * (1 << 20) + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\n" + b"x-many: a\r\n" * (1 << 16) + b"\r\n",
        b"GET /livez?" + b"a" * (1 << 20) + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\nx-endless: " + b"a" * (1 << 23),
    ],
    ids=["one", "many", "address", "endless"],
)
def test_large_headers(client: httpx.Client, head: bytes) -> None:
    """CVE-2025-48956: refused, however much more of it comes."""
    address = (client.base_url.host, client.base_url.port or 80)
    with socket.create_connection(address, timeout=60) as connection:
        with suppress(ConnectionError):  # closed before all was sent
            connection.sendall(head)
        with suppress(ConnectionError):
            assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
        with suppress(ConnectionError):
            while connection.recv(1 << 16):
                pass
    assert client.get("/livez", headers={"x-long": "a" * (1 << 15)}).status_code == 200


def test_keys_are_compared_in_constant_time() -> None:
    """CVE-2025-59425: every hash is compared, by hmac, whether or not an earlier one matched."""
    source = inspect.getsource(security.RequireKey._knows).strip()
    (knows,) = ast.parse(source).body
    equalities = [node for node in ast.walk(knows) if isinstance(node, ast.Compare)]
    assert [ast.unparse(node) for node in equalities] == ["scheme.lower() == 'bearer'"]
    assert "[hmac.compare_digest(found, known) for known in self._hashes]" in source


def test_no_patterns_from_clients(client: httpx.Client) -> None:
    """CVE-2025-48944: a pattern that could not be compiled ended the engine."""
    for pattern in ("(", "(a+)+$"):
        for value in ({"type": "regex", "value": pattern}, pattern):
            assert client.post("/generate", json=body("/generate", parameters={"grammar": value})).status_code == 422
        stop = client.post("/generate", json=body("/generate", parameters={"stop": [pattern], "max_new_tokens": 2}))
        assert stop.status_code == 200  # a stop is a text, not a pattern


def test_a_starlette_that_reads_ranges_in_linear_time() -> None:
    """CVE-2025-62727."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = next(r for r in project["optional-dependencies"]["service"] if r.startswith("starlette"))
    assert Version("0.49.0") not in Requirement(required).specifier
    assert Version(version("starlette")) >= Version("0.49.1")


@pytest.mark.parametrize("name", ["../tiny-fp32", "/etc/passwd", "..", "tiny-fp32/", "tiny-fp32\0", "TINY-FP32", "%2e"])
def test_model_names_are_not_paths(client: httpx.Client, name: str) -> None:
    for route in ROUTES:
        answer = client.post(route, json=body(route, model=name))
        assert answer.status_code == 404, answer.text
        assert "passwd" not in answer.text


def test_limits(client: httpx.Client) -> None:
    """Of the body, the prompt, the texts, the stops and the ids."""
    before = sample(client, "ttgpt_requests_rejected_total", reason="too_large")
    assert client.post("/generate", content=b" " * ((1 << 20) + 1)).status_code == 413
    assert sample(client, "ttgpt_requests_rejected_total", reason="too_large") == before + 1
    assert client.post("/generate", json=body("/generate", " sea" * 100)).status_code == 422
    assert client.post("/v1/completions", json={"prompt": "x", "n": 5}).status_code == 400
    for stop in (["a"] * 17, ["a" * 65]):
        assert client.post("/generate", json=body("/generate", parameters={"stop": stop})).status_code == 422
    for route in ("/embeddings", "/v1/embeddings"):
        assert client.post(route, json=body(route, [0] * 2049)).status_code in (400, 422)
