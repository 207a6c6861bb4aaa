"""Data set repositories on the Hugging Face hub, at one commit.

The login is the hub's usual one (HF_TOKEN or `hf auth login`); only the library reads it. Files are
downloaded unchanged; no code of a repository is ever run.
"""

import contextlib
import glob
import re
from pathlib import Path

from ft_pipeline.base.errors import PipelineError, is_disk_error
from ft_pipeline.base.network.answers import SAMPLE, explain_answer
from ft_pipeline.base.network.timeouts import find_status, limited_hub, read_timeout
from ft_pipeline.config.sources import HuggingFaceSource
from ft_pipeline.sources.files import (
    copy_files,
    list_folder,
    select_files,
)
from ft_pipeline.sources.hub_data_files import list_data_files

HUB_LOGIN = "run `hf auth login`, or set HF_TOKEN to a token from huggingface.co/settings/tokens"


def resolve_commit(name: str, source: HuggingFaceSource) -> str:
    """Return the commit (40 hex characters) of the declared revision. Raises PipelineError."""
    from huggingface_hub import HfApi

    if source.revision and re.fullmatch(r"[0-9a-f]{40}", source.revision):
        return source.revision
    seconds = read_timeout()
    try:
        with limited_hub(seconds):
            info = HfApi().dataset_info(source.id, revision=source.revision)
    except Exception as error:
        raise _explain(name, source, error) from error
    return str(info.sha)


def download(name: str, source: HuggingFaceSource, revision: str, folder: Path) -> None:
    """Download the declared files of one commit, unchanged, into `folder`.

    Raises PipelineError with the remedy. The client resumes interrupted transfers; after a failed
    one, the next run fetches what the hub's cache does not hold completely.
    """
    try:
        with limited_hub(read_timeout()):
            files = _download(name, source, revision)
    except PipelineError:
        raise
    except Exception as error:
        raise _explain(name, source, error) from error
    if not files:
        raise PipelineError(
            f"source {name}: no file of huggingface:{source.id} at {revision[:7]} matches "
            f"{', '.join(source.files)}. Change `{name}.files` in sources.yaml."
        )
    copy_files(files, folder)


def _download(name: str, source: HuggingFaceSource, commit: str) -> dict[str, Path]:
    """Download into the hub's cache; return the requested files there by name."""
    from huggingface_hub import snapshot_download

    patterns = list(source.files)
    if source.config or source.split or not source.files:
        _check_access(source, commit)
        declared = dict.fromkeys(list_data_files(name, source, commit), Path())
        wanted = select_files(declared, source.files) if source.files else declared
        patterns = [glob.escape(file) for file in wanted]
        if not patterns:
            return {}
    path = snapshot_download(
        source.id, repo_type="dataset", revision=commit, allow_patterns=patterns
    )
    # The cache's folder of a commit also holds what was fetched for other patterns.
    return select_files(list_folder(Path(path)), patterns)


def _check_access(source: HuggingFaceSource, commit: str) -> None:
    """Send the first request of `datasets`, which hides refusals. Raises the hub's error."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RemoteEntryNotFoundError

    HfApi().dataset_info(source.id, revision=commit)
    with contextlib.suppress(RemoteEntryNotFoundError):  # a data set may do without a README
        HfApi().hf_hub_download(source.id, "README.md", repo_type="dataset", revision=commit)


def _explain(name: str, source: HuggingFaceSource, error: Exception) -> PipelineError:
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # what the hub answered when the file was not in the cache
    status = find_status(error)
    kind = type(error).__name__
    terms = "accept the terms on its page if there are any"
    if status == 401:
        problem = "requires a valid login (HTTP 401)"
        remedy = (
            f"Check `{name}.id` in sources.yaml (a data set that does not exist looks like a "
            f"private one); to log in, {HUB_LOGIN}; and {terms}"
        )
    elif status == 403 or kind in ("GatedRepoError", "DisabledRepoError"):
        problem = f"refused access to this account (HTTP {status or 403})"
        remedy = (
            f"With the token's account, {terms}; otherwise use a token with read access: "
            f"{HUB_LOGIN}"
        )
    elif status == 404:
        problem = f"has no such data set, revision or file (HTTP 404, {kind})"
        remedy = (
            f"Check `{name}.id` and `{name}.revision` in sources.yaml; for a private one, "
            f"{HUB_LOGIN}"
        )
    elif isinstance(error, OfflineModeIsEnabled):
        problem, remedy = "was not contacted, because HF_HUB_OFFLINE is set", "Unset HF_HUB_OFFLINE"
    elif is_disk_error(error):
        problem = f"sent files that cannot be written to the hub's cache ({error})"
        remedy = "Free some space, or set HF_HOME to a writable folder on a larger disk"
    elif known := explain_answer(error, status):
        problem, remedy = known
    else:
        problem = f"could not be reached, or the transfer was interrupted ({kind})"
        remedy = (
            "Check the network and HF_ENDPOINT, then run again; if the data set needs an account, "
            + HUB_LOGIN
        )
    return PipelineError(
        f"source {name}: the Hugging Face hub {problem} for {source.id}. {remedy}. {SAMPLE}"
    )
