"""Where the service listens, and what a proxy before it may do to paths."""

import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from service.settings import Settings
from tests.service.conftest import wait_until
from tests.service.test_process import REPOSITORY as ROOT
from tests.service.test_process import address, outcome, process, without_settings


def test_both_families_of_addresses(artifacts: list[Path]) -> None:
    with process(artifacts[0], "--port", 0, "--host", "::") as child:
        url = address(child)
        assert url.startswith("http://[::]:")
        port = url.rpartition(":")[2]
        for host in ("127.0.0.1", "[::1]"):
            assert httpx.get(f"http://{host}:{port}/livez", timeout=60).status_code == 200


def test_one_family_has_brackets_too(artifacts: list[Path]) -> None:
    with process(artifacts[0], "--port", 0, "--host", "::1") as child:
        url = address(child)
        assert url.startswith("http://[::1]:")
        assert httpx.get(f"{url}/livez", timeout=60).status_code == 200
        code, errors = outcome(artifacts[0], "--host", "::1", "--port", url.rpartition(":")[2])
    assert (code, len(errors)) == (2, 1)
    assert "[::1]:" in errors[0]


def test_a_unix_socket(artifacts: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "ttgpt.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    with process(artifacts[0], "--uds", path) as child:
        assert address(child) == f"unix://{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://service", timeout=60) as client:
            wait_until(lambda: client.get("/readyz").status_code == 200)
            assert client.post("/tokenize", json={"inputs": "x"}).json()[0]["text"] == "x"
        code, errors = outcome(artifacts[0], "--uds", path)  # somebody listens there
        assert (code, len(errors)) == (2, 1)
        assert "--uds" in errors[0]
        child.terminate()
        assert child.wait(60) == 0
    assert not path.exists()


@pytest.mark.parametrize("name", ["a-file", "missing/folder", "a" * 200])
def test_what_is_no_place_for_a_unix_socket(tmp_path: Path, name: str) -> None:
    (tmp_path / "a-file").write_text("mine")
    code, errors = outcome("x", "--uds", tmp_path / name)
    assert (code, len(errors)) == (2, 1)
    assert errors[0].startswith("ttgpt serve: uds: cannot listen on ")
    assert (tmp_path / "a-file").read_text() == "mine"


def test_a_root_path_behind_a_proxy(artifacts: list[Path]) -> None:
    """Whether or not the proxy cuts it off; also before the models are there, and where the path decides."""
    locked = {"TTGPT_API_KEY_HASHES": "0" * 64}
    with process(artifacts[0], "--port", 0, "--root-path", "/models/ttgpt", **locked) as child:
        url = address(child)
        for prefix in ("", "/models/ttgpt"):
            assert httpx.get(f"{url}{prefix}/livez", timeout=60).status_code == 200
        wait_until(lambda: httpx.get(f"{url}/models/ttgpt/readyz", timeout=60).status_code == 200)
        for prefix in ("", "/models/ttgpt"):
            assert httpx.get(f"{url}{prefix}/livez", timeout=60).status_code == 200
            assert httpx.get(f"{url}{prefix}/v1/models", timeout=60).json()["error"]["code"] == "unauthorized"
            assert httpx.get(f"{url}{prefix}/info", timeout=60).json()["error_type"] == "unauthorized"
    with process(artifacts[0], "--port", 0, TTGPT_ROOT_PATH="/gpt") as child:
        url = address(child)
        wait_until(lambda: httpx.get(f"{url}/readyz", timeout=60).status_code == 200)
        for prefix in ("", "/gpt"):
            assert httpx.post(f"{url}{prefix}/tokenize", json={"inputs": "x"}, timeout=60).status_code == 200
            assert httpx.get(f"{url}{prefix}/v1/models", timeout=60).status_code == 200
            assert httpx.get(f"{url}{prefix}/openapi.json", timeout=60).json()["servers"] == [{"url": "/gpt"}]
            assert '"/gpt/openapi.json"' in httpx.get(f"{url}{prefix}/docs", timeout=60).text.replace("'", '"')


@pytest.mark.parametrize("value", ["gpt", "/gpt/", "/", "//x", "/v1", "/v1/x", "/a?b"])
def test_a_root_path_must_be_one(value: str) -> None:
    with pytest.raises(ValueError, match="root_path"):
        Settings(models=("x",), root_path=value)


@pytest.mark.parametrize("path", ["/tokenize/", "/generate/", "/v1/completions/"])
def test_a_slash_at_the_end_is_never_redirected(client: httpx.Client, path: str) -> None:
    body = {"inputs": "x"} if "v1" not in path else {"prompt": "x", "max_tokens": 1}
    forwarded = {"x-forwarded-proto": "https"}
    answer = client.post(path, json=body, headers=forwarded, follow_redirects=False)
    assert answer.status_code == 200
    assert "location" not in answer.headers
    assert client.get("/coffee/", headers=forwarded, follow_redirects=False).status_code == 404


def test_head_works_wherever_get_does(client: httpx.Client) -> None:
    paths = ("/livez", "/startupz", "/readyz", "/health", "/metrics", "/info", "/v1/models", "/v1/models/tiny-fp32")
    for path in (*paths, "/docs", "/openapi.json"):
        answer, whole = client.head(path), client.get(path)
        assert (answer.status_code, answer.content) == (200, b""), path
        assert answer.headers["content-type"] == whole.headers["content-type"]
        if path != "/metrics":
            assert answer.headers["content-length"] == str(len(whole.content))
    assert client.head("/v1/models/none").status_code == client.get("/v1/models/none").status_code == 404
    assert client.head("/generate").status_code == 405
    wanted = 'ttgpt_http_requests_total{handler="/v1/models",method="HEAD",status="2xx"}'
    assert wanted in client.get("/metrics").text


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "br", "zstd", "x-gzip", "identity, gzip", "none"])
@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_compressed_bodies_are_refused(client: httpx.Client, path: str, encoding: str) -> None:
    answer = client.post(path, content=b"\x1f\x8b\x08", headers={"content-encoding": encoding})
    assert answer.status_code == 415
    assert "content-encoding" in answer.text
    assert answer.headers["accept-encoding"] == "identity"
    assert ("message" in answer.text) == path.startswith("/v1")


def test_a_body_that_is_said_not_to_be_compressed(client: httpx.Client) -> None:
    answer = client.post("/tokenize", json={"inputs": "x"}, headers={"content-encoding": "identity"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("TTGPT_API_KEY_HASH", "did you mean TTGPT_API_KEY_HASHES?"),
        ("ttgpt_api_key_hash", "did you mean TTGPT_API_KEY_HASHES?"),
        ("TTGPT_MODEL", "did you mean TTGPT_MODELS?"),
        ("TTGPT_MAXBATCH", "did you mean TTGPT_MAX_BATCH?"),
        ("TTGPT_", "is not a setting"),
        ("TTGPT_QQQQ", "is not a setting"),
    ],
)
def test_a_misspelt_variable_is_refused(variable: str, hint: str) -> None:
    code, errors = outcome("x", "--port", 0, **{variable: "1"})
    assert (code, len(errors)) == (2, 1)
    assert errors[0].startswith(f"ttgpt serve: {variable}: is not a setting")
    assert hint in errors[0]


def test_service_links_are_named() -> None:
    """What Kubernetes sets for Services called ttgpt and ttgpt-redis."""
    links = {"TTGPT_PORT": "tcp://10.0.0.1:8000", "TTGPT_SERVICE_HOST": "10.0.0.1", "TTGPT_PORT_8000_TCP_PORT": "8000"}
    for found in (links, {"TTGPT_REDIS_PORT": "tcp://10.0.0.1:6379", "TTGPT_REDIS_SERVICE_HOST": "10.0.0.1"}):
        code, errors = outcome("x", **found)
        assert (code, len(errors)) == (2, 1)
        assert "enableServiceLinks: false" in errors[0]


def test_settings_in_small_letters_are_settings(artifacts: list[Path]) -> None:
    with process(artifacts[0], ttgpt_port="0") as child:
        assert address(child).startswith("http://127.0.0.1:")


def test_ttgpt_serve_hands_every_option_on(artifacts: list[Path], tmp_path: Path) -> None:
    """And leaves what it is not told to the environment."""
    path = tmp_path / "socket"
    options = ["--uds", str(path), "--root-path", "/gpt", "--default-model", "tiny-int8"]
    for given, expected in ((options, f"unix://{path}"), (["--port", "0"], "http://[::1]:")):
        command = [sys.executable, "-c", "from compressor.cli import main; main()", "serve", *map(str, artifacts)]
        env = without_settings() | {"TTGPT_HOST": "::1"}
        with subprocess.Popen([*command, *given], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) as child:
            try:
                assert address(child).startswith(expected)
            finally:
                child.kill()


def test_both_command_lines_have_the_same_options() -> None:
    shown = [
        subprocess.run(
            [sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        for command in (["-m", "service"], ["-c", "from compressor.cli import main; main()", "serve"])
    ]
    options = [set(re.findall(r"--[a-z][a-z-]+", text)) - {"--help"} for text in shown]
    assert options[0] == options[1] != set()
