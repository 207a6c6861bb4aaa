"""How long to wait for a silent server, even with clients that would wait forever.

`FT_SOURCE_TIMEOUT` (seconds, default 60) limits the wait for a connection, for an answer, or
between two pieces of one. A download as a whole may take as long as it needs.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ft_pipeline.base.errors import PipelineError

VARIABLE = "FT_SOURCE_TIMEOUT"
DEFAULT = 60.0

_patching = threading.Lock()


class NoAnswer(Exception):
    """A server that accepted a request and stayed silent."""


def read_timeout() -> float:
    """Return the seconds to wait. Raises PipelineError if the variable is not a number."""
    given = os.environ.get(VARIABLE, "").strip()
    try:
        seconds = float(given or DEFAULT)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise PipelineError(
            f"{VARIABLE}: expected a number of seconds, such as 60 (found: {given!r})."
        )
    return seconds


@contextmanager
def limited_requests(seconds: float) -> Iterator[None]:
    """Apply this time-out to each request that `requests` sends without one.

    Kaggle's SDK sets none and offers no way to set one, so during the call it becomes the default
    of the adapter's public `send`. Only one such call at a time per process.
    """
    from requests.adapters import HTTPAdapter

    send = HTTPAdapter.send

    def send_in_time(adapter: HTTPAdapter, request: Any, *rest: Any, **options: Any) -> Any:
        if not rest:  # `stream` and `timeout` come by name, as Session.send passes them
            options["timeout"] = options.get("timeout") or seconds
        return send(adapter, request, *rest, **options)

    with _patching:
        HTTPAdapter.send = send_in_time  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            HTTPAdapter.send = send  # type: ignore[method-assign]


@contextmanager
def limited_hub(seconds: float) -> Iterator[None]:
    """Apply this time-out to each request of huggingface_hub; many have none.

    An unanswered request raises NoAnswer, which the client does not retry six times as it does its
    own time-outs. The client still resumes a stalled transfer, up to six times. Transfers through
    Xet bypass this client and keep their own time-outs.
    """
    import httpx
    from huggingface_hub import set_client_factory

    # The factory that the library starts with has no public name (huggingface_hub 1.x).
    from huggingface_hub.utils._http import default_client_factory, hf_request_event_hook

    class Client(httpx.Client):
        def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
            request.extensions["timeout"] = httpx.Timeout(seconds).as_dict()
            try:
                return super().send(request, **options)
            except httpx.TimeoutException as error:
                raise NoAnswer(f"no answer from {request.url.host}") from error

    hooks = {"request": [hf_request_event_hook]}
    set_client_factory(lambda: Client(event_hooks=hooks, follow_redirects=True, timeout=seconds))
    try:
        yield
    finally:
        set_client_factory(default_client_factory)


def find_status(error: BaseException) -> int | None:
    """Return the HTTP status that caused an error, if one did."""
    for cause in _causes(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def is_timeout(error: BaseException) -> bool:
    """Say whether a server's silence caused an error."""
    return any(_tells_of_silence(cause) for cause in _causes(error))


def _tells_of_silence(error: BaseException) -> bool:
    """Each client has its own time-out exception; matching by name avoids importing the clients."""
    names = {kind.__name__ for kind in type(error).__mro__}
    # urllib3 counts a refused connection among the time-outs for old callers' sake.
    refused = "NewConnectionError" in names
    return not refused and bool(
        names & {"NoAnswer", "TimeoutError", "Timeout", "TimeoutException", "ConnectTimeoutError"}
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from or wraps, but not errors handled before it."""
    waiting: list[Any] = [error]
    seen: list[BaseException] = []
    while waiting:
        cause = waiting.pop(0)
        if isinstance(cause, BaseException) and not any(cause is known for known in seen):
            seen.append(cause)
            yield cause
            waiting += [cause.__cause__, getattr(cause, "reason", None), *cause.args]
