"""Addresses without the logins they may carry, for errors, logs and records.

https://me:pw@example.org/a.csv?token=abc   →   https://…@example.org/a.csv?…
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from ft_pipeline.base.hashing import hash_json

# Where the address is a message's only one, a password may hold all but `/` and line breaks.
LOGIN_IN_ADDRESS = re.compile(r"(?<=://)[^/\n]*@")
QUERY = re.compile(r"(?<=[^\s?])\?[^\s'\"<>]+")
CHATTY = ("urllib3.connectionpool", "urllib3.util.retry")


def hide_login(text: str) -> str:
    """Replace `user:password@` in addresses; keep `?`, which may be a wildcard."""
    return LOGIN_IN_ADDRESS.sub("…@", text)


def hide_secrets(text: str) -> str:
    """Replace `user:password@` and `?query` in addresses."""
    return QUERY.sub("?…", hide_login(text))


def record_address(address: str, shown: str) -> str:
    """Return what may be recorded of an address and still distinguishes it from any other.

    `shown` is the address without its secrets. A hidden query enters as a hash; a login does not,
    because it says who reads, not what is read.
    """
    if shown == address:
        return address
    return f"{shown} #{hash_json(hide_login(address))[:16]}"


@contextmanager
def hidden_in_logs() -> Iterator[None]:
    """Hide secrets in urllib3's logs, which quote each path with its query."""
    loggers = [logging.getLogger(name) for name in CHATTY]
    for logger in loggers:
        logger.addFilter(_hide_in_record)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_hide_in_record)


def _hide_in_record(record: logging.LogRecord) -> bool:
    record.msg, record.args = hide_secrets(record.getMessage()), ()
    return True
