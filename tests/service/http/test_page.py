"""The page for people: who gets it, under which rules, and that it is complete without any other host."""

import hashlib
import re
import tomllib
from importlib.resources import files
from pathlib import Path

import httpx
import pytest

from service.http.page import MEDIA_TYPES, POLICY
from service.settings import Settings
from tests.e2e.answer import QUESTION
from tests.service.conftest import sample, serving

ROOT = Path(__file__).parents[3]
HTML = {"accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}
FOLDER = Path(str(files("service") / "page"))
FILES = sorted(path.name for path in FOLDER.iterdir())
KEY = "page-key-Wb2n"
EACH = pytest.mark.parametrize("name", FILES)


def _path(name: str) -> str:
    return "/" if name == "index.html" else f"/page/{name}"


def test_browsers_get_the_page_and_machines_what_they_always_got(client: httpx.Client) -> None:
    page = client.get("/", headers=HTML)
    assert (page.status_code, page.text) == (200, (FOLDER / "index.html").read_text())
    for accept in ("*/*", "application/json", "text/event-stream", "text/htm"):
        refused = client.get("/", headers={"accept": accept})
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
        assert refused.json() == {"error": "Method Not Allowed", "error_type": "not_found"}
        assert refused.headers["vary"] == page.headers["vary"] == "accept"
    answer = client.post("/", headers=HTML, json={"inputs": "x", "parameters": {"max_new_tokens": 1}})
    assert answer.json()[0].keys() == {"generated_text"}


@EACH
def test_every_file_comes_under_the_strictest_rules(client: httpx.Client, name: str) -> None:
    answer = client.get(_path(name), headers=HTML)
    assert answer.status_code == 200
    assert answer.content == (FOLDER / name).read_bytes()
    assert answer.headers["content-type"].startswith(MEDIA_TYPES[name.rpartition(".")[2]])
    rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert rules == POLICY
    assert rules["default-src"] == "'none'"
    assert set(rules.values()) <= {"'none'", "'self'"}
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


@EACH
def test_every_file_is_asked_for_anew_and_sent_once(client: httpx.Client, name: str) -> None:
    first = client.get(_path(name), headers=HTML)
    assert first.headers["cache-control"] == "no-cache"
    for known in (first.headers["etag"], f'"old", W/{first.headers["etag"]}', "*"):
        again = client.get(_path(name), headers={**HTML, "if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
    changed = client.get(_path(name), headers={**HTML, "if-none-match": '"old"'})
    assert (changed.status_code, changed.content) == (200, first.content)


@EACH
def test_head_is_get_without_the_body(client: httpx.Client, name: str) -> None:
    get, head = (client.request(verb, _path(name), headers=HTML) for verb in ("GET", "HEAD"))
    assert (head.status_code, head.content) == (200, b"")
    for header in ("etag", "content-length", "content-type", "content-security-policy"):
        assert head.headers[header] == get.headers[header]


def test_what_is_not_in_the_folder_is_not_there(client: httpx.Client) -> None:
    for path in ("/page", "/page/none.js", "/page/../page.py", "/page/%2e%2e/settings.py", "/page/index.html/x"):
        assert client.get(path, headers=HTML).status_code == 404
    assert client.post("/page/page.js").status_code == 405


def test_the_page_needs_no_key_and_everything_else_does(settings: Settings) -> None:
    hashes = (hashlib.sha256(KEY.encode()).hexdigest(),)
    with serving(Settings(models=settings.models[:1], threads=1, api_key_hashes=hashes)) as locked:
        for name in FILES:
            for verb in ("GET", "HEAD"):
                assert locked.request(verb, _path(name), headers=HTML).status_code == 200
        for verb, path in (("GET", "/info"), ("GET", "/metrics"), ("POST", "/"), ("POST", "/page/page.js")):
            assert locked.request(verb, path, headers=HTML).status_code == 401
        assert locked.get("/").status_code == 401


def test_requests_for_the_page_are_counted_by_file(client: httpx.Client) -> None:
    labels = {"handler": "/page/page.css", "method": "GET", "status": "2xx"}
    before = sample(client, "ttgpt_http_requests_total", **labels)
    client.get("/page/page.css")
    assert sample(client, "ttgpt_http_requests_total", **labels) == before + 1


@EACH
def test_nothing_comes_from_elsewhere_or_stands_inline(name: str) -> None:
    text = (FOLDER / name).read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//\w+\.\w+/|@import|url\(", text)
    assert not re.search(r'\bstyle=|<style|\bon\w+="|<script(?! type="module" src=)', text)
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)


def test_every_file_is_used_and_shipped() -> None:
    texts = {name: (FOLDER / name).read_text() for name in FILES}
    for name in FILES:
        linked = re.compile(rf'(page|\.)/{re.escape(name)}"')
        assert name == "index.html" or any(linked.search(texts[user]) for user in FILES if user != name)
    package_data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "page/*" in package_data["service"]


def test_the_question_is_that_of_the_first_page() -> None:
    page, drawing = (FOLDER / "index.html").read_text(), QUESTION["parameters"]
    assert f">{QUESTION['inputs']}</textarea>" in page
    for name in ("temperature", "top_p", "seed"):
        assert re.search(rf'id="{name}" [^>]*value="{drawing[name]}"', page)
