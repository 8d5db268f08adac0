"""The audit log: each decision as a line of JSON, with what was observed and how the answer went.

A thread of its own writes the lines. Lines that it cannot write, or not fast enough, are counted
and dropped. A line is an object whose `kind` is `answer` (an answer has ended) or `shadow` (the
base has measured it). `answer` joins the two; `id` is the request id that the client was told.
"""

import json
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from controller.analyzer import PromptFeatures
from controller.controller import Decision
from controller.rotating_file import AuditError, RotatingFile
from telemetry import Snapshot

__all__ = ["AnswerRecord", "AuditError", "AuditLog"]

log = logging.getLogger(__name__)

_MAX_WAITING = 10_000
"""Lines that may wait to be written; further ones are lost."""
_WARN_SECONDS = 60.0
"""Between two warnings."""
_CLOSE_SECONDS = 5.0
"""What writing the last lines may take."""


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """One answer that has ended, and the decision that it came from.

    `first` is the decision of the request's arrival, `decision` the final one. `answer_id` is
    unique, `request_id` is what the client was told. `snapshot` are the host's readings at the end.
    `outcome` goes into the log as it is. `prompt` is the prompt's text, None if it must not be
    logged.
    """

    answer_id: str
    request_id: str
    first: Decision
    decision: Decision
    features: PromptFeatures
    snapshot: Snapshot
    outcome: dict[str, Any]
    prompt: str | None = None


class AuditLog:
    """Appends lines to a file that is rotated.

    Threads: any thread may call the public methods; one thread of the log's own writes.
    """

    def __init__(
        self,
        path: Path,
        max_bytes: int = 64 * 2**20,
        keep: int = 5,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """At `max_bytes` the file at `path` is renamed; `keep` such files stay.

        `on_lost` is called for each line that is lost, from any thread. Raises `AuditError` if the
        file cannot be written.
        """
        self._file = RotatingFile(path, max_bytes, keep)
        self._on_lost = on_lost
        self._last_warning: float | None = None
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue(_MAX_WAITING)
        self._thread = threading.Thread(target=self._write_all, name="audit", daemon=True)
        self._thread.start()

    def log_answer(self, record: AnswerRecord) -> None:
        """Log one answer, however it ended."""
        decision, observation = record.decision, record.decision.observation
        self._put(
            kind="answer",
            answer=record.answer_id,
            id=record.request_id,
            policy=decision.policy,
            action=decision.action.label,
            reason=decision.reason,
            arrival={
                "action": record.first.action.label,
                "reason": record.first.reason,
                "wait": record.first.observation.wait,
            },
            propensities=decision.propensities,
            feasible=[c.action.label for c in observation.candidates if c.blocked is None],
            predicted={
                "loss": decision.chosen.loss,
                "ttft": decision.chosen.ttft,
                "tpot": decision.chosen.tpot,
                "wait": observation.wait,
            },
            outcome=record.outcome,
            features=record.features,
            host={name: reading.value for name, reading in record.snapshot.readings()},
            observation=observation,
            **({} if record.prompt is None else {"prompt": record.prompt}),
        )

    def log_shadow(self, answer_id: str, variant: str, measured: dict[str, Any]) -> None:
        """Log what the base measured on an answer that a variant gave."""
        self._put(kind="shadow", answer=answer_id, variant=variant, **measured)

    def close(self) -> None:
        """Write the lines that wait and end the thread. Give up after 5 seconds."""
        try:
            self._lines.put(None, timeout=_CLOSE_SECONDS)
        except queue.Full:
            return
        self._thread.join(_CLOSE_SECONDS)

    def _put(self, **fields: object) -> None:
        try:
            self._lines.put_nowait({"time": round(time.time(), 3), **fields})
        except queue.Full:
            self._count_lost("its thread cannot keep up")

    def _write_all(self) -> None:
        while (fields := self._lines.get()) is not None:
            try:
                self._file.append(json.dumps(fields, default=asdict).encode() + b"\n")
            except OSError as error:
                self._count_lost(error.strerror or type(error).__name__)
            except (TypeError, ValueError, RecursionError) as error:
                self._count_lost(type(error).__name__)
        self._file.close()

    def _count_lost(self, reason: str) -> None:
        """Count a lost line. Warn at most once a minute, and never with the line's contents."""
        self._on_lost()
        now = time.monotonic()
        if self._last_warning is None or now - self._last_warning >= _WARN_SECONDS:
            self._last_warning = now
            log.warning("lines of the audit log %s are lost: %s", self._file.path, reason)
