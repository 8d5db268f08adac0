"""The browser that looks at the page."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.browser import CHROMIUM, DRIVER, open_browser, resize


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium of 1280 by 900 pixels."""
    pytest.importorskip("selenium")
    if not (CHROMIUM and DRIVER):
        pytest.skip("there is no chromium with its driver")
    with open_browser() as browser:
        resize(browser, 1280, 900)
        yield browser
