"""What a source's sensor remembers between looks, and which recipes it starts.

The sensor's cursor holds, as JSON:

    {"revision": "3", "changes": 2, "waiting": ["quiz"], "asked": 1764061200.0, "failure": null}

Nothing here knows Dagster. A failed look changes no revision, so it starts nothing.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, ValidationError

from ft_pipeline.base.durations import to_seconds
from ft_pipeline.config.recipe import Automation


class SourceWatch(BaseModel):
    """What was seen of one source so far."""

    model_config = ConfigDict(frozen=True)

    revision: str | None = None
    changes: int = 0  # so that a revision that comes back is requested again
    waiting: tuple[str, ...] = ()  # recipes that the newest revision was not requested for yet
    asked: float = 0.0  # when the network was asked last, seconds since 1970
    failure: str | None = None


@dataclass(frozen=True)
class Reader:
    """A recipe that reads the source; `last_run`: when new data last started a run of it."""

    recipe: str
    automation: Automation
    last_run: Callable[[], float | None] = field(default=lambda: None)


@dataclass(frozen=True)
class Decision:
    """The outcome of a look: recipes to run, what to remember, and why nothing else happens."""

    watch: SourceWatch
    requests: tuple[str, ...]
    reason: str


def parse_watch(cursor: str | None) -> SourceWatch:
    """Parse a cursor; an empty one, or one of another version, means nothing was seen."""
    try:
        return SourceWatch.model_validate_json(cursor) if cursor else SourceWatch()
    except ValidationError:
        return SourceWatch()


def note_failure(watch: SourceWatch, failure: str) -> SourceWatch:
    """Remember that upstream did not answer; keep the last known revision."""
    return watch.model_copy(update={"failure": failure})


def decide(watch: SourceWatch, revision: str, readers: Iterable[Reader], now: float) -> Decision:
    """Compare a revision with the last one and decide which recipes run now.

    Each change requests one run per recipe: immediately, or after its `min_interval`.
    """
    readers = tuple(readers)
    if watch.revision is None:  # the first look of all: what is there is not new
        watch = watch.model_copy(update={"revision": revision})
    elif revision != watch.revision:
        watch = watch.model_copy(
            update={
                "revision": revision,
                "changes": watch.changes + 1,
                "waiting": tuple(reader.recipe for reader in readers),
            }
        )
    requests, waiting, reasons = [], [], []
    for reader in readers:
        if reader.recipe not in watch.waiting:
            continue
        refused = _refuse(reader, now)
        if refused is None:
            requests.append(reader.recipe)
            continue
        reasons.append(refused)
        if reader.automation.on_new_data:  # one that is paused is told when it goes on
            waiting.append(reader.recipe)
    watch = watch.model_copy(update={"waiting": tuple(waiting)})
    return Decision(watch, tuple(requests), "; ".join(reasons) or "nothing new")


def name_request(watch: SourceWatch, source: str, recipe: str) -> str:
    """Return the run key of a request: Dagster starts no second run of the same key."""
    return f"{recipe} {source} {watch.revision} #{watch.changes}"


def _refuse(reader: Reader, now: float) -> str | None:
    settings = reader.automation
    if settings.paused:
        return f"{reader.recipe} is paused (automation.paused in recipes/{reader.recipe}.yaml)"
    if not settings.on_new_data:
        return f"{reader.recipe} does not run on new data (automation.on_new_data is false)"
    last = reader.last_run()
    rest = to_seconds(settings.min_interval) - (now - last) if last is not None else 0.0
    if rest > 0:
        return f"{reader.recipe} waits another {rest:.0f} s (automation.min_interval)"
    return None
