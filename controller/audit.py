"""Every decision as a line of JSON in rotated files: what was seen, chosen, and came of it.

Lines are written by a thread of their own; what it cannot keep up with, or cannot write, is
counted and dropped. A line is an object whose `kind` is `answer`, when an answer has ended, or
`shadow`, when the base has read it again; `answer` joins the two, `id` is what the client was told.
"""

import json
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from controller.analyzer import PromptFeatures
from controller.controller import Decision
from controller.rotating_file import AuditError, RotatingFile
from policies import Candidate
from telemetry import Snapshot

__all__ = ["AuditError", "AuditLog"]

log = logging.getLogger(__name__)

_WAITING = 10_000
"""Lines that wait to be written; further ones are lost."""
_WARN_EVERY = 60.0
_CLOSE = 5.0  # seconds that the last lines may take


class AuditLog:
    """Appends to `path`; at `max_bytes` the file is renamed, and `keep` such files stay.

    `on_lost` is called for each line that is lost, from any thread. Raises `AuditError` if the file
    cannot be written.
    """

    def __init__(
        self,
        path: Path,
        max_bytes: int = 64 * 2**20,
        keep: int = 5,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._file = RotatingFile(path, max_bytes, keep)
        self._on_lost = on_lost
        self._warned: float | None = None
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._write_all, name="audit", daemon=True)
        self._thread.start()

    def answer(
        self,
        answer_id: str,
        request_id: str,
        decision: Decision,
        features: PromptFeatures,
        host: Snapshot,
        outcome: dict[str, Any],
        prompt: str | None = None,
    ) -> None:
        """One answer, however it ended; no other has its `answer_id`.

        `prompt` is its text, if that may be kept.
        """
        kept = {} if prompt is None else {"prompt": prompt}
        self._note(
            kind="answer",
            answer=answer_id,
            id=request_id,
            policy=decision.policy,
            action=decision.action.label,
            reason=decision.reason,
            propensities=decision.propensities,
            feasible=[c.action.label for c in decision.observation.candidates if _feasible(c)],
            predicted={
                "loss": decision.chosen.loss,
                "ttft": decision.chosen.ttft,
                "tpot": decision.chosen.tpot,
                "wait": decision.observation.wait,
            },
            outcome=outcome,
            features=features,
            host={name: reading.value for name, reading in host.readings()},
            observation=decision.observation,
            **kept,
        )

    def shadow(self, answer_id: str, variant: str, found: dict[str, Any]) -> None:
        """What the base thinks of an answer that a variant gave."""
        self._note(kind="shadow", answer=answer_id, variant=variant, **found)

    def close(self) -> None:
        """Writes what is waiting and ends the thread, if the disk lets it within 5 seconds."""
        try:
            self._waiting.put(None, timeout=_CLOSE)
        except queue.Full:
            return
        self._thread.join(_CLOSE)

    def _note(self, **fields: object) -> None:
        try:
            self._waiting.put_nowait({"time": round(time.time(), 3), **fields})
        except queue.Full:
            self._lose("its thread cannot keep up")

    def _write_all(self) -> None:
        while (fields := self._waiting.get()) is not None:
            try:
                self._file.append(json.dumps(fields, default=asdict).encode() + b"\n")
            except OSError as error:
                self._lose(error.strerror or type(error).__name__)
            except (TypeError, ValueError, RecursionError) as error:
                self._lose(type(error).__name__)
        self._file.close()

    def _lose(self, reason: str) -> None:
        """Counts a line, and warns at most once a minute, never with what the line says."""
        self._on_lost()
        now = time.monotonic()
        if self._warned is None or now - self._warned >= _WARN_EVERY:
            self._warned = now
            log.warning("lines of the audit log %s are lost: %s", self._file.path, reason)


def _feasible(candidate: Candidate) -> bool:
    return candidate.blocked is None
