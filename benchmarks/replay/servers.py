"""The servers that a replay compares."""

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.replay.open_loop import SLOTS, Objective, ScheduledRequest, send_all
from benchmarks.streams import llama_server
from benchmarks.support.peers import ggufs
from server.engine.loading.artefact_lookup import shipped_artefact
from server.engine.loading.source import DEFAULT_MODEL
from server.testing import ServerProcess

LLAMA = "llama-server Q4_0"
"""The name of llama.cpp's server among the policies."""
WITHOUT_READERS = " without readers"
"""Behind a policy's name: every prompt is read in full."""
_READERS = ("readers.json", "readers.safetensors")
"""The files of an artefact that hold its readers."""


def artefact_without_readers(artefact: Path, folder: Path) -> Path:
    """Copy an artefact, but for its readers, to a new `folder`, and return that."""
    shutil.copytree(artefact, folder, ignore=shutil.ignore_patterns(*_READERS))
    return folder


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
        shipped = shipped_artefact(DEFAULT_MODEL)
        assert shipped is not None, "the default model comes with an artefact"
        copy = log.parent / "artefact-without-readers"
        if not copy.exists():
            artefact_without_readers(shipped, copy)
        settings["TRIMTAB_ARTEFACT"] = str(copy)
    server = ServerProcess(
        log=log, TRIMTAB_POLICY=policy, TRIMTAB_FORCE="1", TRIMTAB_SHADOW_SHARE="0", **settings
    )
    server.wait()
    try:
        asyncio.run(send_all(server.url, warm))
        yield server.url
    finally:
        server.stop()
