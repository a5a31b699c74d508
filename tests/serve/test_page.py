"""``swift app`` in a real browser: Debian's Chromium, driven by Playwright. Without a Chromium it is left out."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.serve.conftest import Server, Start

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
FLAGS += ("--disable-component-update", "--disable-sync")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium, or set $CHROMIUM"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(start: Start, adapters: Path) -> Server:
    return start("--adapters", f"code={adapters / 'code'}", command="app", key="sk-page")


@pytest.fixture
def page(browser: Browser, site: Server) -> Iterator[Page]:
    context = browser.new_context()
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if "Content Security" in said.text else None)
    page.goto(f"{site.url}/#key=sk-page")
    yield page
    context.close()
    assert not complaints


def ask(page: Page, question: str) -> None:
    page.fill("#question", question)
    page.press("#question", "Enter")


def test_a_chat_streams_and_is_there_after_a_reload(page: Page, site: Server) -> None:
    expect(page.locator("#model option")).to_have_text(["Tiny-Qwen2", "code"])
    assert "sk-page" not in page.url
    page.fill("#temperature", "0")
    page.fill("#max-tokens", "12")
    page.locator("summary").click()
    page.fill("#system", "Answer plainly.")
    for model in ("Tiny-Qwen2", "code"):
        page.select_option("#model", model)
        ask(page, "Who are you?")
        expect(page.locator("#send")).to_be_visible(timeout=30000)
        history = page.evaluate("JSON.parse(localStorage['swiftune-chat']).messages")
        said = [{"role": "system", "content": "Answer plainly."}, *history[:-1]]
        reply = site.client.chat.completions.create(model=model, messages=said, temperature=0, max_tokens=12)
        assert history[-1]["content"] == reply.choices[0].message.content
    boxes = page.locator(".message").all_text_contents()
    page.reload()
    assert page.locator(".message").all_text_contents() == boxes
    assert len(boxes) == 4
    expect(page.locator("#model")).to_have_value("code")
    assert page.input_value("#system") == "Answer plainly."
    page.click("#clear")
    page.reload()
    assert page.locator(".message").count() == 0


def test_stop_ends_an_answer_and_keeps_what_was_written(page: Page, site: Server) -> None:
    page.fill("#max-tokens", "3000")
    page.fill("#temperature", "1")
    ask(page, "Tell me everything.")
    expect(page.locator(".assistant")).not_to_be_empty(timeout=30000)
    page.click("#stop")
    expect(page.locator("#send")).to_be_visible()
    site.wait_idle()
    assert page.evaluate("JSON.parse(localStorage['swiftune-chat']).messages.length") == 2


def test_markup_in_a_chat_is_text(page: Page) -> None:
    page.fill("#max-tokens", "4")
    ask(page, "<img src=x onerror=document.title='hit'><script>document.title='hit'</script>")
    expect(page.locator("#send")).to_be_visible(timeout=30000)
    assert page.title() == "Swiftune chat"
    assert page.locator("main img").count() == 0


def test_a_mistake_is_shown(page: Page) -> None:
    page.fill("#max-tokens", "99999")
    ask(page, "Hello")
    expect(page.locator("#problem")).to_contain_text("99999 tokens are asked for")


def test_the_page_may_load_nothing_from_elsewhere(page: Page, site: Server) -> None:
    answer = page.request.get(f"{site.url}/")
    assert answer.status == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-frame-options"] == "DENY"


@pytest.fixture(scope="module", autouse=True)
def _stopped(site: Server) -> Iterator[None]:
    yield
    assert site.stop(signal.SIGINT) == 130
    assert "Traceback" not in site.said
