"""What servers' refusals mean that mean the same at every host, and what to do about them."""

from ft_pipeline.base.network.timeouts import VARIABLE, is_timeout, read_timeout

SAMPLE = "To work with the bundled sample instead, set `use_samples: true` in the recipe."


def explain_answer(error: BaseException | None, status: int | None) -> tuple[str, str] | None:
    """Return problem and remedy, without a full stop, of an HTTP status or of a silent server.

    None where neither is the case. A host's own meaning of 401, 403 and 404 goes first.
    """
    if status == 429:
        return "asks to slow down (HTTP 429)", "Wait some minutes, then run again"
    if status is not None:
        return f"answered HTTP {status}", "Wait some minutes, then run again"
    if error is not None and is_timeout(error):
        return (
            f"stayed silent for {read_timeout():g} seconds (time-out)",
            "Check the network and run again; where the server is only slow, set "
            f"{VARIABLE} to more seconds",
        )
    return None
