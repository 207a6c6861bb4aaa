"""Explain server errors that mean the same at every host, and what to do about them."""

from ft_pipeline.base.network.timeouts import VARIABLE, is_timeout, read_timeout

SAMPLE = "To work with the bundled sample instead, set `use_samples: true` in the recipe."


def explain_answer(error: BaseException | None, status: int | None) -> tuple[str, str] | None:
    """Return problem and remedy for an HTTP status or a silent server, without a full stop.

    Returns None if neither applies. Callers handle a host's own 401, 403 and 404 first.
    """
    if status == 429:
        return "asked us to slow down (HTTP 429)", "Wait a few minutes, then run again"
    if status is not None:
        return f"answered HTTP {status}", "Wait a few minutes, then run again"
    if error is not None and is_timeout(error):
        return (
            f"stayed silent for {read_timeout():g} seconds (time-out)",
            f"Check the network and run again; if the server is just slow, set {VARIABLE} to more "
            "seconds",
        )
    return None
