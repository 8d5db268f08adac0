"""Scopes of routes: what a client's key must open for its request to be let in."""

import re
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI


class Scope(StrEnum):
    """A group of routes. Each route is tagged with exactly one when its router is included."""

    PUBLIC = "public"
    """What anybody may have: the health of the server, and the files of the page."""
    INFER = "infer"
    """All that a client of the models needs."""
    METRICS = "metrics"
    ADMIN = "admin"
    """What changes the server. A key with this scope opens everything."""


class RouteScopes:
    """The scope of each route of an application, by the tags of its routers.

    The routes are read when the first request comes. A route without a scope is refused, as one
    that does not exist.
    """

    def __init__(self, app: "FastAPI") -> None:
        self._app = app
        self._rules: list[tuple[re.Pattern[str], frozenset[str], Scope]] | None = None

    def find(self, method: str, path: str) -> Scope | None:
        """Return the scope of a request, None if no route with a scope has its path.

        For a method that the path has not, it is the scope of any other.
        """
        if self._rules is None:
            self._rules = _rules(self._app)
        found = None
        for pattern, methods, scope in self._rules:
            if pattern.match(path):
                if method in methods:
                    return scope
                found = found or scope
        return found


def _rules(app: "FastAPI") -> list[tuple[re.Pattern[str], frozenset[str], Scope]]:
    """Return path, methods and scope of each route. Raise `ValueError` for one with two scopes."""
    from fastapi.routing import iter_route_contexts
    from starlette.routing import compile_path

    rules = []
    for route in iter_route_contexts(app.routes):
        scopes = {Scope(tag) for tag in getattr(route, "tags", ()) if tag in set(Scope)}
        if len(scopes) > 1:
            raise ValueError(f"{route.path} has more than one scope: {', '.join(sorted(scopes))}")
        if scopes and route.path is not None:
            pattern, _, _ = compile_path(route.path)
            rules.append((pattern, frozenset(route.methods or ()), scopes.pop()))
    return rules
