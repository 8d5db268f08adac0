"""How the page shows Markdown, beside another renderer, and what a hostile text can do to it."""

import re
import threading
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from server.api.page_files import PAGE_HEADERS, page_file

SAME = {"del": "s", **{f"h{level + 2}": f"h{level}" for level in (1, 2, 3)}}
WRAPPERS = {"figure", "figcaption", "span", "button", "div"}


class _Outline(HTMLParser):
    """Collects tags and texts; headings count from the page's level, and wrappers do not count."""

    def __init__(self, html):
        super().__init__()
        self.found, self._ours, self._button = [], "<figure" in html, False
        self.feed(html)

    def _name(self, tag):
        return SAME.get(tag, tag) if self._ours else tag

    def handle_starttag(self, tag, attrs):
        self._button |= tag == "figcaption"
        if tag not in WRAPPERS:
            kept = [value for name, value in attrs if name in ("href", "start")]
            self.found.append((self._name(tag), *kept))

    def handle_endtag(self, tag):
        self._button &= tag != "figcaption"
        if tag not in {*WRAPPERS, "br", "hr"}:
            self.found.append(f"/{self._name(tag)}")

    def handle_data(self, data):
        if data.strip() and not self._button:
            self.found.append(re.sub(r"\s+", " ", data.strip()))


MARKDOWN = """# Eggs & *how* to **boil** them

Put them in `boiling  water` for ~~3~~ **7** minutes,
then cool\\*. See [the page](https://example.org/a_(b)?c=1&d "title") or <https://example.org/>.

1. First
2. Second with snake_case_name and 2 * 3 * 4
   - nested **one**
   - nested two
     goes on

> A quote
> with `code`

```python
def boil(egg: str) -> None:
    print(f"**{egg}** <b>")
```

| kind | time |
|------|-----:|
| soft | *5* |
| hard | a \\| b |

***

### End of it
- a
- b
"""
HOSTILE = """<script>alert(1)</script> <img src=x onerror=alert(1)>
[a](javascript:alert(1)) [b](data:text/html,x) ![c](https://example.org/x.png) [d](/relative)

```html
<script>alert(2)</script>
```
"""
RENDER = """
const done = arguments[arguments.length - 1];
import("/page/markdown.js").then(({ showMarkdown }) => {
  const place = document.createElement("div");
  const begun = performance.now();
  for (const text of arguments[0]) showMarkdown(place, text);
  done([place.outerHTML, performance.now() - begun]);
});
"""


class _Files(BaseHTTPRequestHandler):
    """Serves the page's files as the server does, without a model behind them."""

    def do_GET(self):
        file = page_file(self.path)
        self.send_response(404 if file is None else 200)
        for name, value in PAGE_HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "" if file is None else file.media_type)
        self.end_headers()
        self.wfile.write(b"" if file is None else file.body)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def page(browser):
    with ThreadingHTTPServer(("127.0.0.1", 0), _Files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.get(f"http://127.0.0.1:{server.server_port}/page/page.css")
        yield browser
        server.shutdown()


def render(page, *texts):
    return page.execute_async_script(RENDER, texts)


def test_it_is_shown_as_another_renderer_has_it(page):
    from markdown_it import MarkdownIt

    reference = MarkdownIt("commonmark", {"breaks": True}).enable(["table", "strikethrough"])
    expected = _Outline(reference.render(MARKDOWN)).found
    html, _ = render(page, MARKDOWN)
    assert _Outline(html).found == expected
    grown = [MARKDOWN[:length] for length in range(0, len(MARKDOWN), 7)]
    assert render(page, *grown, MARKDOWN)[0] == html, "as it grows"


def test_nothing_becomes_markup_or_a_link_elsewhere_than_to_the_web(page):
    html, _ = render(page, HOSTILE)
    assert set(re.findall(r"<(\w+)", html)) <= {
        *("div", "p", "br", "a", "figure", "figcaption", "span", "button", "pre", "code")
    }
    assert re.findall(r'href="([^"]*)"', html) == ["https://example.org/x.png"]


@pytest.mark.parametrize(
    "piece", [*"[`h\\", "*a ", "**", "_a", "> ", "- ", "|-", "<http", "![a](", "# #", "``` "]
)
def test_no_text_takes_long(page, piece):
    _, milliseconds = render(page, piece * (60_000 // len(piece)))
    assert milliseconds < 3000
