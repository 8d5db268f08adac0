"""A stream whose client disconnects, with a stand-in for the service."""

import asyncio
from types import SimpleNamespace

import pytest
from starlette.requests import ClientDisconnect

from server.api.responses import stream
from server.engine.sequence import Delta


class _Service:
    """Stands in for the service: `closed` lists the requests that were closed."""

    def __init__(self, deltas):
        self._deltas, self.closed = deltas, []

    async def deltas(self, active):
        for delta in self._deltas:
            yield 0, delta

    def close(self, active):
        self.closed.append(active)


def test_a_request_is_closed_when_its_client_disconnects_before_the_first_event():
    async def serve():
        service = _Service([Delta("a")])
        active = SimpleNamespace(generations=[None], headers=dict, final=True)
        response = await stream(service, active, None, lambda *_: [{"text": "a"}])

        async def send(message):
            raise OSError("the connection is closed")

        scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
        with pytest.raises(ClientDisconnect):
            await response(scope, None, send)
        assert service.closed == [active]

    asyncio.run(serve())
