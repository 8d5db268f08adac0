"""The page's files as they are served: complete, own, and under a strict policy."""

import re
from importlib import resources

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from server.api.page import public_router
from server.api.page_files import PUBLIC_PATHS, page_file

MAX_LINES = 300
FOLDER = resources.files("server") / "page"
TEXTS = {path: page_file(path).body.decode() for path in PUBLIC_PATHS}


@pytest.fixture(scope="module")
def client():
    app = FastAPI()
    app.include_router(public_router())
    return TestClient(app)


@pytest.mark.parametrize("path", PUBLIC_PATHS)
def test_each_file_is_served_with_its_type_and_the_policy(client, path):
    response = client.get(path)
    kinds = {"js": "text/javascript", "css": "text/css", "": "text/html"}
    assert response.headers["content-type"].startswith(kinds[path.rpartition(".")[2].strip("/")])
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"


def test_all_files_of_the_folder_are_served_and_nothing_else():
    names = {entry.name for entry in FOLDER.iterdir() if entry.is_file()}
    assert set(PUBLIC_PATHS) == {"/", *(f"/page/{name}" for name in names)} - {"/page/index.html"}
    assert page_file("/page/../page.py") is None


@pytest.mark.parametrize("path", PUBLIC_PATHS)
def test_files_are_short_and_load_nothing_foreign(path):
    text = TEXTS[path]
    assert len(text.splitlines()) < MAX_LINES
    assert not re.search(r"""(src|href|from|import|url)[ =(]*["']?(https?:)?//""", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)
    assert not re.search(r"<[^>]+ (on\w+|style)=", text)


@pytest.mark.parametrize("path", [path for path in PUBLIC_PATHS if path.endswith(".js")])
def test_what_a_module_imports_is_there(path):
    for names, target in re.findall(r'import \{([^}]*)\} from "\./([\w.]+)"', TEXTS[path]):
        module = TEXTS[f"/page/{target}"]
        for name in names.split(","):
            found = rf"export (async )?(function\*?|const|class|let) {re.escape(name.strip())}\W"
            assert re.search(found, module), f"{target} has no {name.strip()}"


def test_scripts_and_styles_use_only_elements_that_are_there():
    html = TEXTS["/"]
    ids = set(re.findall(r'\bid="([\w-]+)"', html))
    for path, text in TEXTS.items():
        if path.endswith(".js"):
            assert set(re.findall(r'\$\("([\w-]+)"\)', text)) <= ids, path
