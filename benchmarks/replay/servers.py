"""The servers that a replay compares."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.replay.open_loop import SLOTS, Objective, ScheduledRequest, send_all
from benchmarks.streams import llama_server
from benchmarks.support.peers import ggufs
from server.testing import ServerProcess

LLAMA = "llama-server Q4_0"
"""The name of llama.cpp's server among the policies."""
WITHOUT_READERS = " without readers"
"""Behind a policy's name: every prompt is read in full."""


@contextmanager
def serving(policy: str, objective: Objective, llama: Path | None, log: Path) -> Iterator[str]:
    """Run a new server under this policy, send a few requests, and yield its address."""
    warm = [ScheduledRequest(0.2 * i, f"Count to {10 + i}.", 20, 16) for i in range(6)]
    if policy == LLAMA:
        assert llama is not None
        with llama_server(llama, ggufs(llama)["Q4_0"], SLOTS, 2, log) as url:
            asyncio.run(send_all(url, warm))
            yield url
        return
    settings = {"TRIMTAB_TTFT_MS": f"{objective.ttft * 1e3:g}", "TRIMTAB_REFUSE_LATE": "1"}
    if policy.endswith(WITHOUT_READERS):
        policy = policy.removesuffix(WITHOUT_READERS)
        settings["TRIMTAB_READERS"] = "0"
    server = ServerProcess(
        log=log, TRIMTAB_POLICY=policy, TRIMTAB_FORCE="1", TRIMTAB_SHADOW_SHARE="0", **settings
    )
    server.wait()
    try:
        asyncio.run(send_all(server.url, warm))
        yield server.url
    finally:
        server.stop()
