"""How log lines look: text for people, or JSON for programs."""

import json
import logging
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["text", "json"]


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON.

    It has `time` (UTC), `level`, `logger`, `message`, `error` with the traceback of an exception,
    and whatever the record's `fields` hold.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def use_format(name: LogFormat) -> None:
    """Let the handlers of the root logger write in a format."""
    if name == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines())
