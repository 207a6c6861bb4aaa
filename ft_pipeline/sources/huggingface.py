"""Data set repositories of the Hugging Face hub, their files at one commit.

The login is the hub's usual one (HF_TOKEN or `hf auth login`) and is read by the library alone.
Files are downloaded as they are; no code of a repository is ever run.
"""

import re
from pathlib import Path

from ft_pipeline.errors import PipelineError
from ft_pipeline.sources.catalog import HuggingFaceSource
from ft_pipeline.sources.files import copy_files, is_disk_error, list_folder, select_files

LOGIN = "run `hf auth login`, or set HF_TOKEN to a token from huggingface.co/settings/tokens"


def resolve_commit(name: str, source: HuggingFaceSource) -> str:
    """Return the commit (40 hex characters) behind the declared revision. Raises PipelineError."""
    from huggingface_hub import HfApi

    if source.revision and re.fullmatch(r"[0-9a-f]{40}", source.revision):
        return source.revision
    try:
        info = HfApi().dataset_info(source.id, revision=source.revision, timeout=30)
    except Exception as error:
        raise _explain(name, source, error) from error
    return str(info.sha)


def download(name: str, source: HuggingFaceSource, revision: str, folder: Path) -> None:
    """Download the declared files of one commit, unchanged, into `folder`.

    Raises PipelineError with the remedy. The client repairs a transfer that breaks off; after one
    that failed, the next run fetches what the hub's cache does not hold whole.
    """
    from huggingface_hub import snapshot_download

    try:
        path = snapshot_download(
            source.id,
            repo_type="dataset",
            revision=revision,
            allow_patterns=list(source.files),
        )
    except Exception as error:
        raise _explain(name, source, error) from error
    # The cache's folder of a commit also holds what was fetched for other patterns.
    files = select_files(list_folder(Path(path)), source.files)
    if not files:
        raise PipelineError(
            f"source {name}: no file of huggingface:{source.id} at {revision[:7]} matches "
            f"{', '.join(source.files)}. Change `{name}.files` in sources.yaml."
        )
    copy_files(files, folder)


def _explain(name: str, source: HuggingFaceSource, error: Exception) -> PipelineError:
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # what the hub answered when the file was not in the cache
    status = getattr(getattr(error, "response", None), "status_code", None)
    kind = type(error).__name__
    if kind in ("GatedRepoError", "DisabledRepoError") or status in (401, 403):
        problem = f"refused access (HTTP {status})"
        remedy = (
            f"Check `{name}.id` in sources.yaml (a data set that does not exist looks like a "
            f"private one), accept the terms on its page if there are any, and log in: {LOGIN}"
        )
    elif status == 404:
        problem = f"has no such data set or revision (HTTP 404, {kind})"
        remedy = (
            f"Check `{name}.id` and `{name}.revision` in sources.yaml; for a private one, {LOGIN}"
        )
    elif status == 429:
        problem, remedy = "asks to slow down (HTTP 429)", "Wait some minutes, then run again"
    elif status is not None:
        problem, remedy = f"answered HTTP {status}", "Wait some minutes, then run again"
    elif isinstance(error, OfflineModeIsEnabled):
        problem, remedy = "was not asked, because HF_HUB_OFFLINE is set", "Unset HF_HUB_OFFLINE"
    elif is_disk_error(error):
        problem = f"sent files that cannot be written to the hub's cache ({error})"
        remedy = "Free some space, or set HF_HOME to a folder on a larger disk that is writable"
    else:
        problem = f"could not be reached, or the transfer broke off ({kind})"
        remedy = (
            "Check the network and HF_ENDPOINT and run again; where the data set needs an account, "
            + LOGIN
        )
    return PipelineError(
        f"source {name}: the Hugging Face hub {problem} for {source.id}. {remedy}. "
        "To work with the bundled sample instead, set `use_samples: true` in the recipe."
    )
