"""Every decision as a line of JSON in rotated files: what was seen, chosen, and came of it.

Lines are written by a thread of their own. A line is an object whose `kind` is `answer`, when an
answer has ended, or `shadow`, when the base has read it again; `id` joins the two.
"""

import json
import logging
import queue
import time
from dataclasses import asdict
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler
from pathlib import Path
from typing import Any

from controller.analyzer import PromptFeatures
from controller.controller import Decision
from policies import Candidate
from pruners.errors import UserError
from telemetry import Snapshot


class AuditLog:
    """Appends to `path`; at `max_bytes` the file is renamed, and `keep` such files stay.

    Raises `AuditError` if the file cannot be written.
    """

    def __init__(self, path: Path, max_bytes: int = 64 * 2**20, keep: int = 5) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            writer = RotatingFileHandler(
                path, maxBytes=max_bytes, backupCount=keep, encoding="utf-8"
            )
        except OSError as error:
            raise AuditError(f"cannot write the audit log {path}: {error.strerror}") from error
        writer.setFormatter(_Lines())
        waiting: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
        self._log = logging.Logger("trimtab.audit")  # its own: nobody else's settings reach it
        self._log.addHandler(_Waiting(waiting))
        self._listener = QueueListener(waiting, writer)
        self._listener.start()

    def answer(
        self,
        request_id: str,
        decision: Decision,
        features: PromptFeatures,
        host: Snapshot,
        outcome: dict[str, Any],
        prompt: str | None = None,
    ) -> None:
        """One answer, however it ended. `prompt` is its text, if that may be kept."""
        kept = {} if prompt is None else {"prompt": prompt}
        self._write(
            kind="answer",
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

    def shadow(self, request_id: str, variant: str, found: dict[str, Any]) -> None:
        """What the base thinks of an answer that a variant gave."""
        self._write(kind="shadow", id=request_id, variant=variant, **found)

    def close(self) -> None:
        """Writes what is waiting and ends the thread."""
        self._listener.stop()
        for handler in self._listener.handlers:
            handler.close()

    def _write(self, **fields: object) -> None:
        self._log.info({"time": round(time.time(), 3), **fields})


class AuditError(UserError):
    """The audit log cannot be written. One clear line."""


class _Waiting(QueueHandler):
    """Hands records on as they are: turning one into text would cost a request a millisecond."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record


class _Lines(logging.Formatter):
    """A record's dictionary as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(record.msg, default=asdict)


def _feasible(candidate: Candidate) -> bool:
    return candidate.blocked is None
