"""Kaggle data sets, through kagglehub and the official SDK that it is built on.

Credentials are Kaggle's usual ones (KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY, or
~/.kaggle/kaggle.json) and are read by the library alone.
"""

import tempfile
from fnmatch import fnmatch
from pathlib import Path

from ft_pipeline.errors import PipelineError
from ft_pipeline.sources.catalog import KaggleSource
from ft_pipeline.sources.files import copy_files

LOGIN = (
    "create a token on kaggle.com/settings and set KAGGLE_API_TOKEN (or KAGGLE_USERNAME and "
    "KAGGLE_KEY)"
)


def resolve_version(name: str, source: KaggleSource) -> int:
    """Ask Kaggle for the newest version number of a data set. Raises PipelineError."""
    from kagglehub.clients import build_kaggle_client
    from kagglesdk.datasets.types.dataset_api_service import ApiGetDatasetRequest

    request = ApiGetDatasetRequest()
    request.owner_slug, request.dataset_slug = source.handle.split("/")
    try:
        with build_kaggle_client() as client:
            dataset = client.datasets.dataset_api_client.get_dataset(request)
    except Exception as error:
        raise _explain(name, source, error) from error
    return int(dataset.current_version_number)


def download(name: str, source: KaggleSource, revision: str, folder: Path) -> None:
    """Download the declared files of one version, unchanged, into `folder`.

    Raises PipelineError with the remedy; a download that breaks off leaves nothing in `folder`.
    """
    import kagglehub

    with tempfile.TemporaryDirectory(prefix="ft-pipeline-kaggle-") as scratch:
        try:
            path = kagglehub.dataset_download(
                f"{source.handle}/versions/{revision}", output_dir=scratch, force_download=True
            )
        except Exception as error:
            raise _explain(name, source, error) from error
        root = Path(path)
        files = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}
        wanted = {n: p for n, p in files.items() if any(fnmatch(n, g) for g in source.files)}
        if not wanted:
            raise PipelineError(
                f"source {name}: no file of kaggle:{source.handle} matches "
                f"{', '.join(source.files)}. It has: {', '.join(sorted(files)[:10])}. "
                f"Change `{name}.files` in sources.yaml."
            )
        copy_files(wanted, folder)


def _explain(name: str, source: KaggleSource, error: Exception) -> PipelineError:
    import requests

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        problem, remedy = f"refused access (HTTP {status})", f"To log in, {LOGIN}"
    elif status == 404:
        problem = "has no such data set or version (HTTP 404)"
        remedy = f"Check `{name}.handle` and `{name}.version` in sources.yaml"
    elif status == 429:
        problem, remedy = "asks to slow down (HTTP 429)", "Wait some minutes, then run again"
    elif isinstance(error, requests.exceptions.RequestException):
        problem = f"could not be reached ({type(error).__name__})"
        remedy = f"Check the network; where the data set needs an account, {LOGIN}"
    else:
        problem, remedy = f"failed ({type(error).__name__}: {error})", f"To log in, {LOGIN}"
    return PipelineError(
        f"source {name}: Kaggle {problem} for {source.handle}. {remedy}. "
        "To work with the bundled sample instead, set `use_samples: true` in the recipe."
    )
