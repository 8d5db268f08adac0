"""A hub of models over HTTP on this machine, which can break off, lie, refuse and be slow."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

from server.engine.loading.sources.hub import HubName

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 1000
"""Bytes from which a file counts as large: its digest is a sha256, else git's."""


@dataclass
class FakeHub:
    """What the hub holds, and how it behaves. `files` are by repository and name.

    `cut` is the number of bytes after which the next answers break off, one for each number in it;
    `spoil` the number of downloads that bring wrong bytes. `status` is that of every answer, if not
    0. Files of a `gated` hub, and repositories of a `private` one, need `token`. `hold` stops a
    download after its first half until the event is set.
    """

    files: dict[str, dict[str, bytes]]
    commit: str = COMMIT
    url: str = ""
    cut: list[int] = field(default_factory=list)
    spoil: int = 0
    status: int = 0
    ranges: bool = True
    gated: bool = False
    private: bool = False
    token: str = "secret"
    hold: threading.Event | None = None
    pages: dict[str, str] = field(default_factory=dict)
    """Other pages, by their path."""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Host, path and headers of every request."""

    def use(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Makes the hub's client talk to this hub, here and in processes, with a cache folder."""
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_ENDPOINT", self.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(cache))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)

    def ranges_of(self, name: str) -> list[str | None]:
        """The `Range` of each request for the bytes of a file."""
        ends = f"/cdn/{name}"
        return [headers.get("range") for _, path, headers in self.requests if path.endswith(ends)]


def digest_of(content: bytes) -> str:
    if len(content) >= LARGE:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def named(text: str) -> HubName:
    name = HubName.parse(text)
    assert name is not None
    return name


def part_of(hub, repo: str, name: str) -> Path:
    """Where the bytes of an unfinished download are."""
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "blobs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{digest_of(hub.files[repo][name])}.incomplete"


@contextmanager
def fake_hub(files: dict[str, dict[str, bytes]]) -> Iterator[FakeHub]:
    """Runs a hub with these files within the context."""
    hub = FakeHub(files)

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hub
    finally:
        if hub.hold is not None:
            hub.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub

    def log_message(self, *rest):
        pass

    def do_GET(self):
        hub, path = self.state, unquote(self.path.split("?")[0])
        headers = {name.lower(): value for name, value in self.headers.items()}
        hub.requests.append((headers["host"].split(":")[0], path, headers))
        known = headers.get("authorization") == f"Bearer {hub.token}"
        kind, *rest = path.strip("/").split("/")
        if hub.status:
            return self._answer(hub.status)
        if path in hub.pages:
            return self._answer(200, hub.pages[path].encode())
        if kind == "api":
            repo = "/".join(rest[1:3])
            if repo not in hub.files or (hub.private and not known):
                return self._answer(404 if known else 401, code="RepoNotFound")
            return self._listing(repo)
        if kind == "cdn" and "/".join(rest[:2]) not in hub.files:
            return self._answer(404)
        if kind == "cdn":
            return self._bytes("/".join(rest[:2]), "/".join(rest[2:]), headers.get("range"))
        repo, name = f"{kind}/{rest[0]}", "/".join(rest[3:])
        if hub.gated and not known:
            return self._answer(403, code="GatedRepo")
        port = self.server.server_port  # another host, to which no token may go
        return self._answer(302, location=f"http://localhost:{port}/cdn/{repo}/{name}")

    def _answer(self, status, body=b"", code="", **headers):
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _listing(self, repo):
        siblings = []
        for name, content in self.state.files[repo].items():
            about = {"rfilename": name, "size": len(content), "blobId": digest_of(content)}
            if len(content) >= LARGE:
                about["lfs"] = {
                    "sha256": digest_of(content),
                    "size": len(content),
                    "pointerSize": 1,
                }
            siblings.append(about)
        body = json.dumps({"id": repo, "sha": self.state.commit, "siblings": siblings})
        self._answer(200, body.encode())

    def _bytes(self, repo, name, wanted):
        hub = self.state
        content, start = hub.files[repo][name], 0
        if hub.spoil:
            hub.spoil -= 1
            content = bytes(byte ^ 1 for byte in content)
        if wanted and hub.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                return self._answer(416, content_range=f"bytes */{len(content)}")
        self.send_response(206 if wanted and hub.ranges else 200)
        if wanted and hub.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + hub.cut.pop(0) if hub.cut else len(content)
        if hub.hold is not None and len(content) >= LARGE:
            self.wfile.write(content[start : end // 2])
            self.wfile.flush()
            hub.hold.wait(30)
            start = end // 2
        self.wfile.write(content[start:end])
        self.close_connection = True
        return None
