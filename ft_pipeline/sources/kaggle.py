"""Kaggle data sets, through kagglehub and the official SDK below it.

Credentials are Kaggle's usual ones (KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY, or
~/.kaggle/kaggle.json) ; only the library reads them. What the library logs and prints goes to
stderr, because stdout belongs to `ft-pipeline run --json`.
"""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

from ft_pipeline.base.errors import PipelineError, is_disk_error
from ft_pipeline.base.network.answers import SAMPLE, explain_answer
from ft_pipeline.base.network.timeouts import find_status, limited_requests, read_timeout
from ft_pipeline.config.sources import KaggleSource
from ft_pipeline.sources.files import (
    copy_files,
    list_folder,
    select_files,
)

KAGGLE_LOGIN = (
    "create a token on kaggle.com/settings and set KAGGLE_API_TOKEN (or KAGGLE_USERNAME and "
    "KAGGLE_KEY)"
)


def resolve_version(name: str, source: KaggleSource) -> int:
    """Look up the newest version number of a data set. Raises PipelineError."""
    seconds = read_timeout()
    try:
        with limited_requests(seconds), contextlib.redirect_stdout(sys.stderr):
            from kagglehub.clients import build_kaggle_client
            from kagglesdk.datasets.types.dataset_api_service import ApiGetDatasetRequest

            request = ApiGetDatasetRequest()
            request.owner_slug, request.dataset_slug = source.handle.split("/")
            with build_kaggle_client() as client:
                dataset = client.datasets.dataset_api_client.get_dataset(request)
    except Exception as error:
        raise _explain(name, source, error) from (None if _shows_login(error) else error)
    version = int(dataset.current_version_number)
    if version < 1:  # the client's default where the answer holds none
        raise PipelineError(
            f"source {name}: Kaggle lists no version of {source.handle}; it may still be "
            f"processing the data set. Run again later, or pin `{name}.version` in sources.yaml. "
            f"{SAMPLE}"
        )
    return version


def download(name: str, source: KaggleSource, revision: str, folder: Path) -> None:
    """Download the declared files of one version, unchanged, into `folder`.

    Raises PipelineError with the remedy, or OSError if the disk is full or cannot be written; an
    interrupted download leaves nothing in `folder`.
    """
    seconds = read_timeout()
    folder.mkdir(parents=True, exist_ok=True)
    # On the disk of `folder`: /tmp is often in memory, and archive and files need room.
    with tempfile.TemporaryDirectory(prefix=".kaggle-", dir=folder) as scratch:
        try:
            with limited_requests(seconds), contextlib.redirect_stdout(sys.stderr):
                import kagglehub

                path = kagglehub.dataset_download(
                    f"{source.handle}/versions/{revision}", output_dir=scratch, force_download=True
                )
        except Exception as error:
            if is_disk_error(error) and not _shows_login(error):
                raise
            raise _explain(name, source, error) from (None if _shows_login(error) else error)
        files = list_folder(Path(path))
        wanted = select_files(files, source.files)
        if not wanted:
            raise PipelineError(
                f"source {name}: no file of kaggle:{source.handle} matches "
                f"{', '.join(source.files)}. It has: {', '.join(sorted(files)[:10])}. "
                f"Change `{name}.files` in sources.yaml."
            )
        copy_files(wanted, folder)


def _shows_login(error: Exception) -> bool:
    """Say whether an error quotes the login, as http.client does for a header it cannot send."""
    secrets = (os.environ.get(name, "").strip() for name in ("KAGGLE_API_TOKEN", "KAGGLE_KEY"))
    return any(secret and secret in str(error) for secret in secrets)


def _explain(name: str, source: KaggleSource, error: Exception) -> PipelineError:
    import requests

    status = find_status(error)
    kind = type(error).__name__
    if _shows_login(error):
        problem = f"was not contacted, because the login cannot be sent ({kind})"
        remedy = "Set KAGGLE_API_TOKEN to just the token, without spaces or line breaks"
    elif status == 401:
        problem = "requires a valid login (HTTP 401)"
        remedy = f"To log in, {KAGGLE_LOGIN}"
    elif status == 403:
        problem = "refused access to this account (HTTP 403)"
        remedy = (
            f"Check `{name}.handle` in sources.yaml (a data set that does not exist can look like "
            "a private one), accept the terms on its page if there are any; otherwise "
            f"{KAGGLE_LOGIN}"
        )
    elif status == 404:
        problem = "has no such data set or version (HTTP 404)"
        remedy = f"Check `{name}.handle` and `{name}.version` in sources.yaml"
    elif known := explain_answer(error, status):
        problem, remedy = known
    elif isinstance(error, requests.exceptions.RequestException):
        problem = f"could not be reached, or the transfer was interrupted ({kind})"
        remedy = (
            f"Check the network and run again; if the data set needs an account, {KAGGLE_LOGIN}"
        )
    else:
        problem = f"gave no usable answer ({kind}: {' '.join(str(error).split())})"
        remedy = (
            f"Check the network and run again; if the answer is about credentials, {KAGGLE_LOGIN}"
        )
    return PipelineError(f"source {name}: Kaggle {problem} for {source.handle}. {remedy}. {SAMPLE}")
