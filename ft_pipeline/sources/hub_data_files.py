"""The files of a hub data set that belong to a configuration and split, as its page declares.

The `datasets` library decides, at one commit: from `configs:` in the README, otherwise from the
names of folders and files. It runs no code of the repository (since datasets 4, it cannot).
"""

import tempfile
from typing import Any

from ft_pipeline.base.errors import PipelineError, suggest
from ft_pipeline.config.sources import HuggingFaceSource


def list_data_files(name: str, source: HuggingFaceSource, commit: str) -> list[str]:
    """Return the names of the repository's data files for the declared config and split.

    Raises PipelineError if that config or split has none, and passes on the clients' errors.
    """
    import datasets

    # A cache of its own: the library falls back to what it cached for any commit.
    with tempfile.TemporaryDirectory() as scratch:
        options = {"download_config": datasets.DownloadConfig(cache_dir=scratch)}
        try:
            builder = datasets.load_dataset_builder(
                source.id, name=source.config, revision=commit, cache_dir=scratch, **options
            )
        except ValueError as error:
            configs = datasets.get_dataset_config_names(source.id, revision=commit, **options)
            if source.config in configs or (source.config is None and len(configs) == 1):
                raise
            raise _wrong_config(name, source, configs) from error
        except (RuntimeError, FileNotFoundError) as error:
            if not _has_no_data_files(error):
                raise
            raise _no_data_files(name, source, commit) from error
    splits: dict[str, Any] = dict(builder.config.data_files or {})
    if source.split is not None and source.split not in splits:
        raise _wrong_split(name, source, list(splits))
    chosen = [source.split] if source.split else list(splits)
    files = [str(file) for split in chosen for file in splits[split]]
    return [_name_in_repository(name, source, commit, file) for file in dict.fromkeys(files)]


def _has_no_data_files(error: Exception) -> bool:
    kinds = ("DataFilesNotFoundError", "EmptyDatasetError")
    return type(error).__name__ in kinds or "scripts are no longer supported" in str(error)


def _name_in_repository(name: str, source: HuggingFaceSource, commit: str, file: str) -> str:
    prefix = f"hf://datasets/{source.id}@{commit}/"
    if not file.startswith(prefix):
        raise PipelineError(
            f"source {name}: huggingface:{source.id} declares a data file outside its repository: "
            f"{file}. Declare that file as a source of `kind: url`."
        )
    return file.removeprefix(prefix)


def _wrong_config(name: str, source: HuggingFaceSource, configs: list[str]) -> PipelineError:
    found = f"has no configuration `{source.config}`" if source.config else "needs a configuration"
    return PipelineError(
        f"source {name}: huggingface:{source.id} {found}. It has: {', '.join(configs)}. "
        f"Set `{name}.config` in sources.yaml.{suggest(source.config or '', configs)}"
    )


def _wrong_split(name: str, source: HuggingFaceSource, splits: list[str]) -> PipelineError:
    return PipelineError(
        f"source {name}: huggingface:{source.id} has no split `{source.split}`. It has: "
        f"{', '.join(splits)}. Change `{name}.split` in sources.yaml."
        f"{suggest(source.split or '', splits)}"
    )


def _no_data_files(name: str, source: HuggingFaceSource, commit: str) -> PipelineError:
    return PipelineError(
        f"source {name}: huggingface:{source.id} at {commit[:7]} declares no data files; it may "
        "hold a loading script, which is never run, or no file of a known type. Look at its files "
        f'on the hub and name those to read: `{name}.files: ["data/*.jsonl"]` in sources.yaml.'
    )
