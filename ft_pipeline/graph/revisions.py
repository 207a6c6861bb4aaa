"""The upstream revision of a project's source, shared through the remote.

Machines use what one of them resolved instead of asking the network, so that a second clone
computes the same fingerprints. `<store>/upstream/<source>.json` is pulled if this store has none
for the declared source, and pushed when resolved here.
"""

import contextlib
import logging

from ft_pipeline.base.project import Project
from ft_pipeline.config.sources import AnySource
from ft_pipeline.sources import upstream
from ft_pipeline.store.remote import Remote, RemoteError
from ft_pipeline.store.upstream_record import Unpushed

logger = logging.getLogger(__name__)


def read_revision(
    project: Project, name: str, source: AnySource, use_sample: bool = False
) -> str | None:
    """Return the revision to build, without asking upstream; None if none was resolved yet.

    Raises PipelineError if a local file is missing, RemoteError if nothing was resolved here and
    the remote cannot be reached.
    """
    place = (name, source, project.root, project.store, use_sample)
    revision = upstream.read_revision(*place)
    if project.remote is None:
        return revision
    if revision is not None:
        _push_pending(project, name, source, Remote(project.remote))
        return revision
    record = Remote(project.remote).read_record(name)
    if record is None or not upstream.adopt_record(name, source, project.store, record):
        return None
    logger.info("%s: using revision %s from the remote", name, record.revision)
    return upstream.read_revision(*place)


def resolve_revision(project: Project, name: str, source: AnySource, push: bool = True) -> str:
    """Ask upstream for the newest revision and record it, here and in the remote.

    Without `push` the next run pushes it. Returns what read_revision returns from now on. Raises
    PipelineError with the remedy.
    """
    # Also over another machine's, but only where this one had to do with the remote.
    unpushed: Unpushed = "replace" if project.remote else "new"
    revision = upstream.resolve_revision(name, source, project.root, project.store, unpushed)
    if project.remote and push:
        _push_pending(project, name, source, Remote(project.remote))
    return revision


def _push_pending(project: Project, name: str, source: AnySource, remote: Remote) -> None:
    """Push a record that is not pushed yet; if that fails, warn and leave it for later."""
    record = upstream.read_record(name, source, project.store)
    if record is None or record.unpushed is None:
        return
    try:
        there = remote.read_record(name)
        if there is None or there.asked != record.asked or record.unpushed == "replace":
            remote.write_record(record)
    except RemoteError as error:
        logger.warning(
            "source %s: revision recorded here, but not pushed. %s The next run tries again.",
            *(name, error),
        )
        return
    with contextlib.suppress(OSError):  # a read-only store asks the remote each time
        upstream.mark_pushed(record, project.store)
