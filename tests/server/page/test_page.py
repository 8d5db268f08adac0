"""The page in a headless Chromium, against one live server that asks for a key."""

import re

import httpx
import pytest

from server.testing import ServerProcess
from tests.support.browser import DONE, ask, choose, click, prefer, press, resize, text_of, until

KEY = "sesame"
LAST = "[...document.querySelectorAll('.answer')].at(-1)"


@pytest.fixture(scope="module")
def server(reading_folders):
    folder, artefact = reading_folders
    running = ServerProcess(
        "--model", str(folder), "--artefact", str(artefact), "--max-running", "2",
        log=folder.parent / "page.log", TRIMTAB_THREADS="1", TRIMTAB_API_KEY=KEY,
    )  # fmt: skip
    yield running.wait()
    running.stop()


@pytest.fixture
def page(server, browser):
    """The page with an empty history, its key known and its choices offered."""
    browser.get(f"{server.url}/page/page.css")  # of the same origin, and without a script
    browser.execute_script(f"localStorage.clear(); sessionStorage.setItem('trimtab-key', '{KEY}')")
    browser.get(server.url)
    until(browser, "document.body.dataset.state === 'ready'")
    until(browser, "document.querySelectorAll('#variant option').length === 4")
    yield browser
    severe = [one["message"] for one in browser.get_log("browser") if one["level"] == "SEVERE"]
    assert [told for told in severe if not re.search(r"status of (400|401|503)", told)] == []


def test_a_key_is_asked_for_and_kept_for_the_tab(page, server):
    page.execute_script("sessionStorage.clear()")
    page.get(server.url)
    until(page, "document.body.dataset.state === 'locked'")
    assert text_of(page, "#key-words") == "This server asks for a key."
    assert page.execute_script("return document.activeElement.id") == "key"
    press(page, "wrong", "\n")
    until(page, "document.getElementById('key-words').textContent.includes('not accept')")
    press(page, KEY, "\n")
    until(page, "document.body.dataset.state === 'ready'")
    assert page.execute_script("return document.getElementById('key-form').hidden")
    page.get(server.url)
    until(page, "document.body.dataset.state === 'ready'")


def test_a_conversation_is_written_kept_changed_and_deleted(page, server):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    choose(page, tokens=24, temperature=0.7)
    page.execute_script("document.getElementById('prompt').focus()")
    ActionChains(page).send_keys("hello").key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(
        Keys.SHIFT
    ).send_keys("world").perform()
    assert page.execute_script("return document.getElementById('prompt').value") == "hello\nworld"
    ask(page, "!")
    assert text_of(page, ".question") == "hello\nworld!"
    first = text_of(page, ".answer .text")
    assert first
    badge = text_of(page, ".badge")
    assert badge.startswith("base")
    assert "read in full" in badge
    assert "whole model" in badge
    click(page, ".again")
    until(page, f"{DONE} && document.querySelector('.versions')?.textContent.includes('2 of 2')")
    click(page, ".versions button")
    assert text_of(page, ".answer .text") == first
    assert "1 of 2" in text_of(page, ".versions")

    choose(page, tokens="")
    page.execute_script("document.getElementById('prompt').focus()")
    press(page, "go on", "\n")
    until(page, f"{LAST}.querySelector('.text').textContent.length > 5")
    page.switch_to.active_element.send_keys(Keys.ESCAPE)
    until(page, DONE)
    sent = httpx.get(f"{server.url}/trimtab/status", headers={"Authorization": f"Bearer {KEY}"})
    assert sent.json()["recent"][0]["finish_reason"] in ("abort", "stop", "length")

    shown = page.execute_script("return document.getElementById('messages').innerText")
    page.get(server.url)
    until(page, "document.querySelectorAll('#chat-list li').length === 1")
    click(page, "#chat-list .open")
    until(page, "document.querySelectorAll('.answer').length === 2")
    until(page, "document.querySelectorAll('#variant option').length === 4")
    assert page.execute_script("return document.getElementById('messages').innerText") == shown
    click(page, "#chat-list .delete")
    assert page.execute_script("return Object.keys(localStorage)") == ["trimtab-choices"]
    assert page.execute_script("return document.activeElement.id") == "undo"
    click(page, "#undo")
    assert text_of(page, ".question") == "hello\nworld!"
    click(page, "#new-chat")
    assert text_of(page, ".question") is None


def test_the_badge_opens_the_decision_of_a_shallow_reading(page, server):
    choose(page, tokens=16, read="read-70", variant="ffn-67")
    assert "ffn-67 writes, the prompt is read by read-70" in text_of(page, "#wish")
    ask(page, "the quick brown fox " * 12)
    badge = text_of(page, ".badge")
    assert "ffn-67" in badge
    assert "read to layer 2 of 3 · smaller model and quicker reading as you asked" in badge
    click(page, ".badge")
    assert page.execute_script("return document.querySelector('.badge').ariaExpanded") == "true"
    headers = {"Authorization": f"Bearer {KEY}"}
    told = httpx.get(f"{server.url}/trimtab/status", headers=headers).json()["recent"][0]
    decision = text_of(page, ".decision")
    assert f"{told['read_tokens']['shallow']} through the lower layers only" in decision
    assert f"{100 * told['read_compute']:.0f} % of the work" in decision
    assert told["id"].removesuffix("-0") in decision
    until(page, "document.querySelector('#latest li').textContent.includes('as you asked')")
    until(page, "document.querySelectorAll('#plot circle.live').length === 1")
    shares = page.execute_script(
        "return [...document.querySelectorAll('#read-by .meter')].map((row) => row.innerText)"
    )
    assert [row.split()[0] for row in shares] == ["full", "read-70", "read-40"]


def test_the_control_asks_for_what_its_sentence_says(page):
    assert text_of(page, "#level-name") == "Balanced"
    wished = {}
    for level in range(5):
        choose(page, level=level)
        wished[text_of(page, "#level-name")] = text_of(page, "#wish")
    assert "The smallest model, ffn-34, answers always" in wished["Fastest"]
    assert len(set(wished.values())) == 5
    choose(page, level=0, tokens=8)
    ask(page, "hello")
    assert "ffn-34" in text_of(page, ".badge")
    choose(page, level=4)
    ask(page, "hello")
    assert page.execute_script(f"return {LAST}.querySelector('.badge b').textContent") == "base"


def test_two_variants_answer_side_by_side(page):
    choose(page, tokens=12, compare=True, left="base", right="ffn-34")
    ask(page, "hello")
    titles = "[...document.querySelectorAll('.side-by-side h3')].map((h) => h.textContent)"
    assert page.execute_script(f"return {titles}") == ["base", "ffn-34"]
    lefts = page.execute_script(
        "return [...document.querySelectorAll('.side-by-side > section')]"
        ".map((one) => one.getBoundingClientRect().left)"
    )
    assert lefts[0] < lefts[1]
    badges = page.execute_script(
        "return [...document.querySelectorAll('.badge b')].map((one) => one.textContent)"
    )
    assert badges == ["base", "ffn-34"]
    click(page, ".side-by-side > section:last-child [aria-pressed]")
    pressed = page.execute_script(
        "return [...document.querySelectorAll('[aria-pressed]')].map((one) => one.ariaPressed)"
    )
    assert pressed == ["false", "true"]


def test_errors_are_sentences(page):
    ask(page, "word " * 600)
    problem = text_of(page, ".problem")
    assert problem.startswith("The server does not accept this:")
    assert problem.endswith(".")
    assert "context" in problem or "tokens" in problem
    until(page, "document.getElementById('announcement').textContent.startsWith('The server')")


TOLD = """
const told = %s;
const real = window.fetch;
window.fetch = (path, options) => {
  if (told.broken) return Promise.reject(new TypeError("failed"));
  const [status, body] = path === "health" ? [503, told.health] : [503, told.error];
  if (told.draining && path === "trimtab/status") {
    return real(path, options).then(async (response) => {
      const status = { ...(await response.json()), trouble: "ending", draining: true };
      return new Response(JSON.stringify(status), { status: 200 });
    });
  }
  return path === "health" || path === "trimtab/status"
    ? Promise.resolve(new Response(JSON.stringify(body), { status })) : real(path, options);
};
"""


@pytest.mark.parametrize(
    ("told", "words", "progress"),
    [
        (
            '{error: {error: {message: "loading"}}, '
            'health: {status: "loading", stage: "weights", progress: 0.25}}',
            "loading the model (weights, 25 %)",
            0.25,
        ),
        ("{draining: true}", "shutting down", None),
        ("{broken: true}", "cannot be reached", None),
    ],
    ids=["loading", "draining", "unreachable"],
)
def test_what_the_server_is_not_ready_for_is_said(page, server, told, words, progress):
    script = {"source": TOLD % told}
    added = page.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", script)
    try:
        page.get(server.url)
        until(page, "!document.getElementById('banner').hidden")
        assert words in text_of(page, "#banner-words")
        assert page.execute_script("return document.getElementById('send').disabled")
        assert page.execute_script("return loading.hidden ? null : loading.value") == progress
    finally:
        page.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def test_the_panel_begins_with_two_minutes_of_the_host(page):
    drawn = until(page, "document.querySelectorAll('.chart .running .line').length")
    assert drawn >= 1
    labels = page.execute_script(
        "return [...document.querySelectorAll('.chart svg')].map((one) => one.ariaLabel)"
    )
    assert len(labels) == 4
    assert "0 running, 0 waiting" in labels[2]
    length = "document.querySelector('.chart .running .line').getAttribute('d').split('L').length"
    assert page.execute_script(f"return {length}") > 3, "more than this page has seen"
    assert "can come from the whole model" in text_of(page, "#present")


def test_it_fits_narrow_screens_and_every_control_has_a_name(page):
    choose(page, tokens=8)
    ask(page, "hello " + "x" * 80)
    click(page, ".badge")
    page.execute_script("document.getElementById('settings').open = true")
    try:
        resize(page, 360, 740)
        for shown in (None, "chats", "server"):
            if shown:
                click(page, f"#show-{shown}")
                until(page, f"!document.getElementById('{shown}').hidden")
            width = page.execute_script("return document.documentElement.scrollWidth")
            assert width <= 360, shown
        click(page, "#show-server")
    finally:
        resize(page, 1280, 900)
    nodes = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    controls = {"button", "textbox", "slider", "combobox", "checkbox", "spinbutton", "image"}
    found = [
        (node["role"]["value"], node.get("name", {}).get("value"))
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in controls
    ]
    assert {role for role, _ in found} >= {"button", "textbox", "slider", "combobox", "image"}
    assert [role for role, name in found if not name] == []
    schemes = {}
    for scheme in ("light", "dark"):
        prefer(page, scheme)
        script = "return getComputedStyle(document.body).backgroundColor"
        schemes[scheme] = page.execute_script(script)
    assert schemes["light"] != schemes["dark"]
