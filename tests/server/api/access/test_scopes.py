"""Every route has one scope, and is closed to keys without it: of the real application, too."""

import asyncio
import hashlib

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import iter_route_contexts

from server.api.access.control import AccessControl
from server.api.access.scopes import RouteScopes, Scope
from server.api.ingress import IngressMiddleware
from server.app import create_app
from server.engine.loading.configured_model import load_configured_model
from server.settings import Settings
from server.testing import ServerProcess

KEYS = {"infer": "reader", "metrics": "watcher", "admin": "root"}


def application(settings):
    """Return an application with one route for each scope, two for one path, and one without."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    access = AccessControl(settings, RouteScopes(app))
    app.add_middleware(
        IngressMiddleware, max_body_bytes=1000, access=access, draining=lambda: False
    )
    routes = APIRouter()

    def answer():
        return "ok"

    for scope in Scope:
        routes.add_api_route(f"/{scope}/{{name:path}}", answer, tags=[scope])
    routes.add_api_route("/both", answer, methods=["GET"], tags=[Scope.INFER])
    routes.add_api_route("/both", answer, methods=["POST"], tags=[Scope.ADMIN])
    app.include_router(routes)
    app.include_router(routes, prefix="/more")
    app.add_api_route("/forgotten", answer)
    return app


@pytest.fixture
def ask(tmp_path):
    file = tmp_path / "keys"
    file.write_text("".join(f"{key} {scope}\n" for scope, key in KEYS.items()))

    async def send(app, path, key, method):
        transport = httpx.ASGITransport(app=app)
        headers = {} if key is None else {"x-api-key": key}
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.request(method, path, headers=headers)).status_code

    def status(path, key=None, method="GET", *, keys=True):
        app = application(Settings(host="0.0.0.0", api_key_file=file if keys else None))
        return asyncio.run(send(app, path, key, method))

    return status


@pytest.mark.parametrize("prefix", ["", "/more"])
def test_a_key_opens_its_scope_and_no_other(ask, prefix):
    for scope in Scope:
        path = f"{prefix}/{scope}/a/b"
        assert ask(path) == (200 if scope is Scope.PUBLIC else 401)
        for held, key in KEYS.items():
            is_open = held in (scope, "admin") or scope is Scope.PUBLIC
            assert ask(path, key) == (200 if is_open else 403), (path, held)


def test_methods_of_one_path_may_have_scopes_of_their_own(ask):
    assert ask("/both", "reader") == 200
    assert ask("/both", "reader", "POST") == 403
    assert ask("/both", "root", "POST") == 200
    assert ask("/both", "reader", "DELETE") == 405


def test_a_route_without_a_scope_is_refused(ask):
    assert ask("/forgotten") == 401
    assert ask("/forgotten", "root") == 404
    assert ask("/forgotten", keys=False) == 404
    assert ask("/nothing", "root") == 404
    assert ask("/infer/x", keys=False) == ask("/admin/x", keys=False) == 200


def test_a_route_with_two_scopes_is_an_error():
    app = FastAPI()
    app.add_api_route("/x", lambda: None, tags=[Scope.INFER, Scope.ADMIN])
    with pytest.raises(ValueError, match="/x has more than one scope"):
        RouteScopes(app).find("GET", "/x")


@pytest.fixture
def tiny_app(tiny_folder):
    """The application of the real server, which is not started."""
    settings = Settings(model=str(tiny_folder), threads=1, learn="off")
    return create_app(load_configured_model(settings.to_model_config()), settings)


OPEN = {"/", "/health"}  # and all below /page/


@pytest.fixture(scope="module")
def guarded_server(tiny_folder, tmp_path_factory):
    """A real server with a file of three keys, one of them as a hash."""
    folder = tmp_path_factory.mktemp("guarded")
    hashed = hashlib.sha256(b"reader").hexdigest()
    (folder / "keys").write_text(f"sha256:{hashed} infer\nwatcher metrics\nroot admin\n")
    server = ServerProcess(
        "--model", str(tiny_folder), "--api-key-file", str(folder / "keys"),
        log=folder / "server.log", TRIMTAB_THREADS="1",
    )  # fmt: skip
    yield server.wait()
    assert server.stop() == 0


@pytest.mark.slow
def test_only_health_and_the_page_are_open(guarded_server, tiny_app):
    """All routes of the application are walked, so that no new one is forgotten."""
    routes = list(iter_route_contexts(tiny_app.routes))
    assert len(routes) > 10
    with httpx.Client(base_url=guarded_server.url, timeout=30) as client:
        for route in routes:
            scopes = {tag for tag in getattr(route, "tags", ()) if tag in set(Scope)}
            assert len(scopes) == 1, f"{route.path} needs one scope, not {scopes}"
            path = route.path.partition("{")[0]
            for method in route.methods:
                answer = client.request(method, path)
                is_open = path in OPEN or path.startswith("/page/")
                assert (answer.status_code != 401) == is_open, path
                refused = "watcher" if scopes == {Scope.INFER} else "reader"
                if scopes <= {Scope.INFER, Scope.METRICS}:
                    other = client.request(method, path, headers={"x-api-key": refused})
                    assert other.status_code == 403, path
                root = client.request(method, path, headers={"x-api-key": "root"})
                assert root.status_code not in (401, 403), path


@pytest.mark.slow
def test_clients_use_either_header(guarded_server):
    with httpx.Client(base_url=guarded_server.url, timeout=30) as client:
        for headers in ({"x-api-key": "reader"}, {"authorization": "Bearer reader"}):
            body = {"prompt": "x", "max_tokens": 1}
            assert client.post("/generate", json=body, headers=headers).status_code == 200
            assert client.get("/metrics", headers=headers).status_code == 403
        assert client.get("/metrics", headers={"x-api-key": "watcher"}).status_code == 200
