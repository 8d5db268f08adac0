"""The documentation's pictures of the page, of the default model: `make screenshots`.

A few requests keep the queue busy meanwhile, so that there is something to see.
"""

import argparse
import io
import tempfile
import threading
from base64 import b64decode
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from server.testing import ServerProcess
from tests.support.browser import DONE, open_browser, prefer, resize, until

FOLDER = Path(__file__).parents[2] / "docs" / "images"
SIZES = {"desktop": (1280, 860), "phone": (360, 740)}
COLOURS = 256
QUESTION = "Write a short Python function that adds two numbers."
SECOND = "Name three things to do in Paris. Use a list."
BEFORE, BEHIND, BUSY_TOKENS = 18, 3, 60


def main() -> None:
    """Start a server, look at the page as people would, and save the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the pictures")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(log=Path(folder) / "server.log")
        try:
            server.wait()
            with open_browser() as browser:
                _take(browser, server.url, out)
        finally:
            server.stop()


def _take(browser: Any, url: str, out: Path) -> None:
    resize(browser, *SIZES["desktop"])
    browser.get(url)
    until(browser, "document.querySelectorAll('#variant option').length > 1")
    _ask(browser, QUESTION, "tokens.value = 110; temperature.value = 0")
    busy = _keep_busy(url, BEFORE)
    until(browser, "document.getElementById('state').textContent.startsWith('busy')", 60)
    _send(browser, SECOND, "tokens.value = 60")
    busy += _keep_busy(url, BEHIND)
    until(browser, DONE, 180)
    for thread in busy:
        thread.join()
    _to_end(browser)
    _save(browser, out / "page.png")
    prefer(browser, "dark")
    resize(browser, *SIZES["phone"])
    browser.execute_script("[...document.querySelectorAll('.badge')].at(-1).click()")
    browser.execute_script("[...document.querySelectorAll('.text')].at(-1).scrollIntoView()")
    _save(browser, out / "page-phone.png")
    browser.execute_script("document.getElementById('show-server').click()")
    _save(browser, out / "page-phone-server.png")
    prefer(browser, "light")
    resize(browser, *SIZES["desktop"])
    browser.execute_script("document.getElementById('new-chat').click()")
    _ask(browser, QUESTION, "compare.checked = true; tokens.value = 90")
    _save(browser, out / "page-compare.png")


def _ask(browser: Any, text: str, choices: str) -> None:
    """Set controls by a script, ask, and wait for the end of the answer."""
    _send(browser, text, choices)
    until(browser, DONE, 180)


def _send(browser: Any, text: str, choices: str) -> None:
    """Set controls by a script, and ask."""
    browser.execute_script(
        f"{choices}; for (const id of ['level', 'tokens', 'temperature', 'compare', 'right'])"
        "for (const event of ['input', 'change'])"
        "document.getElementById(id).dispatchEvent(new Event(event));"
        "document.getElementById('prompt').value = arguments[0];"
        "document.getElementById('ask').requestSubmit()",
        text,
    )
    until(browser, "!document.getElementById('stop').hidden")


def _keep_busy(url: str, requests: int) -> list[threading.Thread]:
    """Let the server write so many answers at once."""
    threads = [threading.Thread(target=_write, args=(url,)) for _ in range(requests)]
    for thread in threads:
        thread.start()
    return threads


def _write(url: str) -> None:
    """Let the server write an answer that nobody reads."""
    hints = {"ttft_ms": 600}
    body = {"prompt": "Once upon a time", "max_tokens": BUSY_TOKENS, "trimtab": hints}
    httpx.post(f"{url}/v1/completions", json=body, timeout=300)


def _to_end(browser: Any) -> None:
    browser.execute_script("const c = document.getElementById('conversation'); c.scrollTop = 1e6")


def _save(browser: Any, path: Path) -> None:
    """Save what is seen, in few colours: a tenth of the size."""
    browser.execute_script("document.activeElement.blur()")
    until(browser, "new Promise((done) => setTimeout(() => done(true), 1200))")
    taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    image = Image.open(io.BytesIO(b64decode(taken["data"]))).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path, f"{path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
