"""Keep log lines until a run has its log file, so that they are written there too."""

import logging
import logging.handlers
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hold_log(name: str) -> Iterator[list[logging.LogRecord]]:
    """Collect the records of the loggers under `name` without showing them; after an error they are shown at once."""
    root = logging.getLogger(name)
    handlers, propagate, level = root.handlers, root.propagate, root.level
    # Holds any number of records and passes none on.
    memory = logging.handlers.MemoryHandler(capacity=2**31, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    root.handlers, root.propagate = [memory], False
    root.setLevel(logging.INFO)
    failed = True
    try:
        yield memory.buffer
        failed = False
    finally:
        root.handlers, root.propagate = handlers, propagate
        root.setLevel(level)
        for record in list(memory.buffer) if failed else ():
            logging.getLogger(record.name).handle(record)
