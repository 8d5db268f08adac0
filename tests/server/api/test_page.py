"""The live page in a headless Chromium, against a live server."""

import shutil

import httpx
import pytest

selenium = pytest.importorskip("selenium")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
in_a_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium with its driver")


@pytest.fixture(scope="module")
def browser():
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options, Service(DRIVER))
    yield browser
    browser.quit()


def until(browser, script: str, seconds: float = 30):
    """Waits until a JavaScript expression holds, and gives its value."""
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(browser, seconds).until(
        lambda b: b.execute_script(f"return {script}"), message=script
    )


def test_the_page_is_open_and_all_of_it_is_served_here(varied_server):
    page = httpx.get(varied_server.url)
    assert page.headers["content-type"].startswith("text/html")
    assert "http://" not in page.text
    assert "https://" not in page.text
    for name in ("page.css", "page.js"):
        assert httpx.get(f"{varied_server.url}/{name}").status_code == 200
    status = httpx.get(f"{varied_server.url}/trimtab/status").json()
    assert [variant["name"] for variant in status["variants"]] == ["base", "ffn-67", "ffn-34"]
    assert status["readers"] == []
    for reading in status["host"].values():
        assert (reading["value"] is None) == bool(reading["reason"])


@in_a_browser
def test_a_pinned_answer_arrives_with_its_decision(varied_server, browser):
    browser.get(varied_server.url)
    until(browser, "document.querySelectorAll('#variant option').length === 4")
    until(browser, "document.querySelectorAll('#read option').length === 2")
    assert until(browser, "document.querySelectorAll('#gauges meter').length >= 3")
    browser.execute_script(
        "document.getElementById('prompt').value = 'hello';"
        "variant.value = 'ffn-67'; read.value = 'full'; tokens.value = 16;"
        "document.getElementById('ask').requestSubmit()"
    )
    until(browser, "!send.disabled && answer.textContent.length > 0")
    shown = browser.execute_script("return decision.textContent")
    assert "ffn-67" in shown
    assert "pinned" in shown
    assert "readfull" in shown, "the reader and its label"
    until(browser, "document.querySelector('#recent tr td:nth-child(2)')?.textContent === 'ffn-67'")
    until(browser, "document.querySelector('#recent tr td:nth-child(3)')?.textContent === 'full'")
    until(browser, "document.querySelectorAll('#plot circle.live').length === 1")
    assert browser.execute_script("return document.querySelectorAll('#plot circle').length") == 4


@in_a_browser
def test_the_mix_has_a_share_for_each_variant_and_each_reader(varied_server, browser):
    for variant in ("ffn-67", "base"):
        body = {"prompt": "hello", "max_tokens": 4, "trimtab": {"variant": variant}}
        assert httpx.post(f"{varied_server.url}/generate", json=body).status_code == 200
    recent = httpx.get(f"{varied_server.url}/trimtab/status").json()["recent"]
    answers = [one for one in recent if one["finish_reason"] != "refused"]
    names = ["base", "ffn-67", "ffn-34"]
    counts = [sum(one["action"].split("+")[0] == name for one in answers) for name in names]
    browser.get(varied_server.url)
    until(browser, "document.querySelectorAll('#read-by .gauge').length === 1")

    def shown(column):
        script = (
            f"return [...document.querySelectorAll('#{column} .gauge')].map(row => row.innerText)"
        )
        return [row.split() for row in browser.execute_script(script)]

    shares = [str(int(100 * count / len(answers) + 0.5)) for count in counts]
    assert shown("written-by") == [[n, s, "%"] for n, s in zip(names, shares, strict=True)]
    assert shown("read-by") == [["full", "100", "%"]]


@in_a_browser
def test_an_answer_shows_how_its_prompt_was_read(reading_server, browser):
    browser.get(reading_server.url)
    until(browser, "document.querySelectorAll('#read option').length === 4")
    browser.execute_script(
        "document.getElementById('prompt').value = 'the quick brown fox '.repeat(20);"
        "read.value = 'read-70'; tokens.value = 16;"
        "document.getElementById('ask').requestSubmit()"
    )
    until(browser, "!send.disabled && decision.textContent.includes('shallow')")
    recent = httpx.get(f"{reading_server.url}/trimtab/status").json()["recent"][0]
    shallow, work = recent["read_tokens"]["shallow"], f"{100 * recent['read_compute']:.0f} %"
    cell = "document.querySelector('#recent tr td:nth-child(3)')?.textContent"
    until(browser, f"{cell} === 'read-70 ({shallow} tokens shallow; {work} of the work)'")
    writer = browser.execute_script(
        "return document.querySelector('#recent td:nth-child(2)').textContent"
    )
    assert writer == "base"
    names = (
        "[...document.querySelectorAll('#read-by .gauge span:first-child')].map(s => s.innerText)"
    )
    assert browser.execute_script(f"return {names}") == ["full", "read-70", "read-40"]


@in_a_browser
def test_an_error_is_shown_as_the_server_says_it(varied_server, browser):
    browser.get(varied_server.url)
    browser.execute_script(
        "document.getElementById('prompt').value = 'word '.repeat(2000);"
        "document.getElementById('ask').requestSubmit()"
    )
    until(browser, "answer.className === 'failed'")
    assert "context" in browser.execute_script("return answer.textContent")


@in_a_browser
def test_every_control_has_a_label_and_nothing_fails(varied_server, browser):
    browser.get(varied_server.url)
    until(browser, "document.querySelectorAll('#variant option').length === 4")
    unlabelled = browser.execute_script(
        "return [...document.querySelectorAll('input, select, textarea')]"
        ".filter((control) => !control.labels.length).map((control) => control.id)"
    )
    assert unlabelled == []
    schemes = {}
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        schemes[scheme] = browser.execute_script(
            "return getComputedStyle(document.body).backgroundColor"
        )
    assert schemes["light"] != schemes["dark"]
    severe = [e for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    assert [e["message"] for e in severe if "400" not in e["message"]] == []
