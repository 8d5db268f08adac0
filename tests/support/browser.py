"""A headless Chromium that looks at the page: for tests and for the documentation's pictures."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
DONE = "!document.getElementById('send').hidden"
"""What holds while the page writes no answer."""
_OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--force-device-scale-factor=1")


@contextmanager
def open_browser() -> Iterator[Any]:
    """Open a browser whose messages are logged, and close it at the end."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in _OPTIONS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options, Service(DRIVER))
    try:
        yield browser
    finally:
        browser.quit()


def resize(browser: Any, width: int, height: int) -> None:
    """Set the size of the view in pixels, also below what a window may have."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def prefer(browser: Any, scheme: str) -> None:
    """Let the page see a preference for a `light` or `dark` scheme."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def until(browser: Any, script: str, seconds: float = 30) -> Any:
    """Wait until a JavaScript expression holds, and return its value."""
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(browser, seconds, poll_frequency=0.05).until(
        lambda b: b.execute_script(f"return {script}"), message=script
    )


def choose(browser: Any, **values: object) -> None:
    """Set controls of the page by their ids, as a user would: with an event."""
    for name, value in values.items():
        browser.execute_script(
            "const control = document.getElementById(arguments[0]);"
            "if (control.type === 'checkbox') control.checked = arguments[1];"
            "else control.value = arguments[1];"
            "for (const event of ['input', 'change']) control.dispatchEvent(new Event(event))",
            name, value,
        )  # fmt: skip


def press(browser: Any, *keys: str) -> None:
    """Type into what has the focus."""
    browser.switch_to.active_element.send_keys(*keys)


def ask(browser: Any, text: str) -> None:
    """Add a text to the page's field, send it by Enter, and wait for the end of the answer."""
    script = "const field = document.getElementById('prompt'); field.focus(); field.value += "
    browser.execute_script(f"{script} arguments[0]", text)
    press(browser, "\n")
    until(browser, DONE)


def text_of(browser: Any, selector: str) -> str | None:
    """Return the text of the first element that a selector finds, None where it finds none."""
    return browser.execute_script(
        "return document.querySelector(arguments[0])?.textContent ?? null", selector
    )


def click(browser: Any, selector: str) -> None:
    """Click the first element that a selector finds."""
    browser.execute_script("document.querySelector(arguments[0]).click()", selector)
