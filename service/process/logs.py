"""JSON lines on stderr, from the service and from the libraries alike. Prompts are never logged."""

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

LOG = logging.getLogger("ttgpt")
CURRENT_REQUEST: ContextVar[str | None] = ContextVar(
    "request_id", default=None
)  # of the request that is being answered
KNOWN = vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "color_message"}  # the last one is uvicorn's


def configure_logs(level: str) -> None:
    """Log everything from `level` on, one JSON object per line; the web server only from "warning" on."""
    number = logging.getLevelNamesMapping()[level.upper()]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[handler], force=True)
    LOG.setLevel(number)


class _JsonLines(logging.Formatter):
    """What a record says, and what its caller gave as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {key: value for key, value in vars(record).items() if key not in KNOWN}
        if request_id := CURRENT_REQUEST.get():
            fields.setdefault("request_id", request_id)
        fields |= {"event": record.getMessage(), "level": record.levelname.lower()}
        fields["timestamp"] = datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z")
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)
