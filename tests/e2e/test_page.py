"""The page in a browser: texts stream and are coloured, whoever reads it, in whatever width and light."""

import asyncio
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from service.engine.engine import Engine
from service.metrics import Metrics
from service.settings import Settings
from tests.conftest import tiny_model, write_artifact
from tests.e2e.browser import Tab, chromium
from tests.service.conftest import int8_model, serving, wait_until
from tests.service.engine.test_engine import Steps

pytestmark = pytest.mark.browser

KEY = "page-key-Wb2n"
TOKENS = 30  # the models of these tests have room for 64
LETTERS = 12  # pixels from the top of the highest to the foot of the lowest
HALVED = """
window.held = [];
const whole = window.fetch;
window.fetch = async (url, options) => {
  const answer = await whole(url, options);
  if (!String(url).endsWith("generate_stream")) return answer;
  const bytes = new Uint8Array(await answer.arrayBuffer());
  const body = new ReadableStream({
    async start(controller) {
      controller.enqueue(bytes.slice(0, bytes.length / 2));
      await new Promise((release) => window.held.push(release));
      controller.enqueue(bytes.slice(bytes.length / 2));
      controller.close();
    },
  });
  return new Response(body, { status: answer.status });
};
"""
NARROW = {"width": 360, "height": 740}
STOPS = 14  # more than the page has without texts


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("models")
    models = [write_artifact(folder / "tiny-fp32", tiny_model(seed=1))]
    models.append(write_artifact(folder / "tiny-int8", int8_model(seed=2)))
    return Settings(models=tuple(models), threads=1)


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[httpx.Client]:
    with serving(settings) as found:
        yield found


@pytest.fixture
def tab(browser: Any, client: httpx.Client) -> Iterator[Tab]:
    yield from _tab(browser, client)


def _tab(browser: Any, client: httpx.Client, **context: Any) -> Iterator[Tab]:
    """Yield a tab in which nothing goes wrong."""
    made = Tab(browser, str(client.base_url), **context)
    yield made
    assert made.complaints == []
    made.page.context.close()


def _served(tab: Tab, models: list[dict[str, Any]]) -> None:
    """Let `/info` tell of other models."""
    info = httpx.get(f"{tab.url}info").json()
    info |= {"model_id": models[0]["model_id"], "models": [{**info["models"][0], **model} for model in models]}
    tab.page.route("**/info", lambda route: route.fulfill(body=json.dumps(info), content_type="application/json"))


def test_both_texts_are_those_of_the_service(tab: Tab, client: httpx.Client) -> None:
    tab.open()
    tab.write(text="The sea", seed=3, tokens=TOKENS)
    for name, panel in (("tiny-fp32", ".first"), ("tiny-int8", ".second")):
        assert tab.page.input_value(f"{panel} select") == name
        parameters = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "seed": 3, "max_new_tokens": TOKENS}
        body = {"inputs": "The sea", "model": name, "parameters": parameters}
        text = client.post("/generate", json=body).json()["generated_text"]
        assert tab.page.text_content(f"{panel} .text") == f"The sea{text}"
        speed, size, perplexity, own = tab.page.locator(f"{panel} dd").all_text_contents()
        assert int(speed) > 0
        assert float(size) > 0
        assert perplexity == "12.5"
        assert float(own) > 1
        tokens = tab.page.locator(f"{panel} tbody tr").count()
        assert tokens == tab.page.locator(f"{panel} .text span[title]").count() > 1
    assert f"tiny-int8: {TOKENS} tokens" in tab.page.text_content("#status")


def test_texts_are_shown_while_they_are_written(tab: Tab) -> None:
    """The answers arrive in two parts, cut inside an event; the second comes when the first was seen."""
    tab.page.add_init_script(HALVED)
    tab.open()
    tab.page.fill("#tokens", str(TOKENS))
    tab.page.click("#write")
    texts, prompt = tab.page.locator(".text"), tab.page.input_value("#text")
    wait_until(lambda: all(len(text) > len(prompt) for text in texts.all_text_contents()))
    halves = texts.all_text_contents()
    tab.page.evaluate("window.held.forEach((release) => release())")
    tab.coloured()
    wholes = texts.all_text_contents()
    assert all(whole.startswith(half) and whole != half for whole, half in zip(wholes, halves, strict=True))


def test_stop_ends_both_texts(browser: Any, settings: Settings) -> None:
    """The engine is held, so that neither can have ended by itself."""
    gate, engine = threading.Event(), Engine(settings, Metrics())
    with serving(settings, engine) as held, _released(engine, gate):
        for tab in _tab(browser, held):
            tab.open()
            tab.page.fill("#tokens", str(TOKENS))
            tab.page.click("#write")
            tab.page.wait_for_selector(".second .text[aria-busy=true]")
            assert tab.page.is_enabled("#stop")
            tab.page.click("#stop")
            tab.page.wait_for_selector("#status:has-text('tiny-fp32: stopped. tiny-int8: stopped.')")
            assert not tab.page.is_enabled("#stop")
            assert tab.page.evaluate("document.activeElement.id") == "write"
            gate.set()
            tab.write(tokens=TOKENS)


@contextmanager
def _released(engine: Engine, gate: threading.Event) -> Iterator[None]:
    """Hold the engine until the gate opens, or the block ends; Playwright has an event loop in this thread."""

    async def submit() -> None:
        engine.submit(Steps(1, gate))

    thread = threading.Thread(target=lambda: asyncio.run(submit()))
    thread.start()
    thread.join()
    try:
        yield
    finally:
        gate.set()


@pytest.mark.parametrize("light", ["light", "dark"])
@pytest.mark.parametrize("viewport", [{"width": 1200, "height": 900}, NARROW], ids=["wide", "narrow"])
def test_axe_finds_nothing(browser: Any, client: httpx.Client, light: str, viewport: dict[str, int]) -> None:
    for tab in _tab(browser, client, color_scheme=light, viewport=viewport):
        tab.open()
        assert tab.violations() == []
        tab.write(tokens=TOKENS)
        for summary in tab.page.locator("summary").all():
            summary.click()
        assert tab.violations() == []
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        print(f"first paint after {tab.first_paint_ms():.0f} ms")


def test_the_keyboard_is_enough(tab: Tab) -> None:
    tab.open()
    reached = []
    for _ in range(STOPS):
        tab.page.keyboard.press("Tab")
        reached.append(tab.page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    wanted = ["text", "temperature", "top_p", "seed", "tokens", "write", "SELECT", "SELECT", "SUMMARY"]
    assert [name for name in reached if name in wanted][: len(wanted)] == wanted
    tab.page.focus("#tokens")
    tab.page.keyboard.press("Control+A")
    tab.page.keyboard.type(str(TOKENS))
    tab.page.focus("#text")
    tab.page.keyboard.type("Then ")
    tab.page.keyboard.press("Control+Enter")
    tab.coloured()


def test_what_the_service_refuses_is_told_in_its_words(tab: Tab) -> None:
    tab.open()
    tab.page.fill("#tokens", "900")
    tab.page.click("#write")
    tab.page.wait_for_selector("[role=alert]:has-text('parameters.max_new_tokens')")
    assert "422" in tab.complaints.pop()
    assert "422" in tab.complaints.pop()
    tab.write(tokens=TOKENS)
    assert tab.page.text_content("#error") == ""


def test_a_key_is_asked_for_and_kept_for_the_tab(browser: Any, settings: Settings) -> None:
    hashes = (hashlib.sha256(KEY.encode()).hexdigest(),)
    with serving(settings.model_copy(update={"api_key_hashes": hashes})) as locked:
        tab = Tab(browser, str(locked.base_url))
        tab.open("#lock[open]")
        assert tab.violations() == []
        tab.page.keyboard.type("wrong")
        tab.page.keyboard.press("Enter")
        tab.page.wait_for_selector("#refusal:has-text('does not know this key')")
        tab.page.keyboard.type(KEY)
        tab.page.keyboard.press("Enter")
        tab.page.wait_for_selector("#write:enabled")
        tab.write(tokens=TOKENS)
        tab.open()
        assert tab.page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
        tab.page.click("#forget")
        tab.page.wait_for_selector("#lock[open]")
        assert tab.page.evaluate("sessionStorage.length") == 0
        assert all("401" in complaint for complaint in tab.complaints)


def test_one_model_is_shown_alone(tab: Tab) -> None:
    _served(tab, [{"model_id": "tiny-fp32", "method": "quantize"}])
    tab.open()
    assert tab.page.locator(".panel").count() == 1
    assert "no dense model is served" in tab.page.text_content("#judge")
    tab.write(tokens=TOKENS)


@pytest.mark.parametrize("width", [1200, NARROW["width"]])
def test_labels_of_the_chart_cover_nothing(browser: Any, client: httpx.Client, width: int) -> None:
    sizes = [18.1, 9.15, 9.02, 9.01, 4.5, 2.3, 0.9, 15.2]
    ratios = [1, 0.9994, 1, 1.0001, 1.003, 1.03, 1.38, 18]
    models = [
        {"model_id": f"gpt2-mini-variant-{i}", "bytes_disk": round(1e6 * size), "perplexity_ratio": ratio}
        for i, (size, ratio) in enumerate(zip(sizes, ratios, strict=True))
    ]
    for tab in _tab(browser, client, viewport={"width": width, "height": 900}):
        _served(tab, [*models, {"model_id": "gpt2-mini-unmeasured", "perplexity_ratio": None}])
        tab.open()
        tab.page.wait_for_selector("#chart svg")
        labels = tab.page.locator("#chart text:not(.tick):not(.axis)")
        assert sorted(labels.all_text_contents()) == [f"variant-{i}" for i in range(len(sizes))]
        boxes = [label.bounding_box() for label in labels.all()]
        chart = tab.page.locator("#footprint").bounding_box()
        assert not [1 for i, box in enumerate(boxes) for other in boxes[:i] if _overlap(box, other)]
        assert all(chart["x"] <= box["x"] and box["x"] + box["width"] <= chart["x"] + chart["width"] for box in boxes)
        assert tab.page.locator("#models tr").count() == len(models) + 1


def _overlap(a: dict[str, float], b: dict[str, float]) -> bool:
    apart = abs(a["y"] + a["height"] / 2 - b["y"] - b["height"] / 2)
    return a["x"] < b["x"] + b["width"] and b["x"] < a["x"] + a["width"] and apart < LETTERS


def test_memory_is_told(tab: Tab) -> None:
    tab.open()
    tab.page.wait_for_selector("#trend svg")
    assert int(tab.page.text_content("#rss")) > 10
    assert "Weights of all models" in tab.page.text_content("#parts")


def test_the_policy_is_enforced(browser: Any, client: httpx.Client) -> None:
    tab = Tab(browser, str(client.base_url))
    tab.open()
    tab.page.evaluate("document.body.setAttribute('style', 'color: red')")
    tab.page.evaluate("document.head.append(Object.assign(document.createElement('script'), {text: '1'}))")
    assert len([complaint for complaint in tab.complaints if "Content Security Policy" in complaint]) == 2
