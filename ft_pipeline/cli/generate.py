"""`ft-pipeline generate`: resolve the model, and run the worker that answers.

An adapter is named as `finetuned_model` (the recipe's own; so are `distilled_model` and
`ce_model`), `history/finetuned_model` (another recipe's) or a folder, each followed by `=WEIGHT` if
several are combined:

    ft-pipeline generate --adapter finetuned_model=0.7 --adapter ./old_adapter=0.3 --prompt "…"
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ft_pipeline.base.errors import PipelineError, suggest
from ft_pipeline.base.settings import validate
from ft_pipeline.config.recipe import Generation, list_recipes
from ft_pipeline.graph.asset_rules import BASE_MODEL, FINETUNED_MODEL, RULES, STUDENT_MODEL
from ft_pipeline.graph.chain import Chain, load_other
from ft_pipeline.lineage.records import find_stored
from ft_pipeline.process.launch import worker_command
from ft_pipeline.process.reaper import end_group
from ft_pipeline.process.tasks import AdapterChoice, GenerateTask

MODEL_ASSET = FINETUNED_MODEL.name
TRAINED = tuple(rule.name for rule in RULES if rule.is_trained)
STUDENTS = tuple(rule.name for rule in RULES if rule.trained_from == STUDENT_MODEL.name)


def define_task(
    chain: Chain,
    adapters: tuple[str, ...],
    base_alone: bool,
    prompt: str,
    system: str | None,
    sampling: dict[str, Any],
) -> GenerateTask:
    """Return the worker's task. `sampling`: what differs from the recipe's generation.

    Raises PipelineError if a model is missing, naming the command that builds it.
    """
    if base_alone and adapters:
        raise PipelineError("generate: --base means no adapter. Give either --base or --adapter.")
    if not prompt.strip():
        raise PipelineError(
            "generate: the prompt is empty. Give --prompt, or pipe a prompt to standard input."
        )
    named = () if base_alone else adapters or (MODEL_ASSET,)
    chosen = tuple(choose_adapter(chain, text) for text in named)
    owner, trained = find_owner(chain, named)
    given = {name: value for name, value in sampling.items() if value is not None}
    settings = chain.recipe.evaluation.generation.model_dump() | given
    training = owner.training(trained)
    return GenerateTask(
        base_model=find_stored(owner, owner.trained_from(trained)).path,
        tokenizer_of=find_stored(owner, BASE_MODEL.name).path,
        quantization=training.base_quantization,
        double_quantization=training.double_quantization,
        precision=training.precision,
        adapters=chosen,
        prompt=prompt,
        system=system,
        generation=validate(Generation, settings, "generate"),
    )


def choose_adapter(chain: Chain, text: str) -> AdapterChoice:
    """Parse `ADAPTER[=WEIGHT]`. Raises PipelineError."""
    name, weight = split_weight(text)
    if weight is None:
        return AdapterChoice(folder=find_adapter(chain, name))
    try:
        number = float(weight)
    except ValueError as error:
        raise PipelineError(
            f"--adapter {text}: `{weight}` is not a number. Expected ADAPTER or ADAPTER=WEIGHT, "
            f"for example {MODEL_ASSET}=0.5."
        ) from error
    return validate(
        AdapterChoice, {"folder": find_adapter(chain, name), "weight": number}, f"--adapter {text}"
    )


def split_weight(text: str) -> tuple[str, str | None]:
    """Split `ADAPTER[=WEIGHT]`; the name of an existing folder may contain `=`."""
    name, separator, weight = text.rpartition("=")
    return (name, weight) if separator and not Path(text).is_dir() else (text, None)


def find_owner(chain: Chain, named: tuple[str, ...]) -> tuple[Chain, str]:
    """Return the chain, and the trained asset whose base the named adapters belong to.

    Students' adapters belong to the student_model of their recipe; all others to the base of
    `chain`.
    """
    parts = [split_weight(text)[0].rpartition("/") for text in named]
    students = [(r, asset) for r, _, asset in parts if asset in STUDENTS and r in _recipes(chain)]
    if not students or len(students) < len(named):
        return chain, MODEL_ASSET
    recipe, asset = students[0]
    return _load_other(chain, recipe), asset


def _recipes(chain: Chain) -> tuple[str, ...]:
    return ("", *list_recipes(chain.project))


def find_adapter(chain: Chain, name: str) -> Path:
    """Return the folder of an adapter: an asset's in the store, or the folder given.

    Raises PipelineError if there is none.
    """
    recipe, _, asset = name.rpartition("/")
    if asset in TRAINED and recipe in _recipes(chain):
        return find_stored(_load_other(chain, recipe), asset).path
    folder = Path(name).expanduser().resolve()
    if folder.is_dir():
        return folder
    known = [*TRAINED, *(f"{r}/{MODEL_ASSET}" for r in list_recipes(chain.project))]
    raise PipelineError(
        f"--adapter {name}: neither a folder ({folder}) nor an asset with an adapter. Assets with "
        f"one: {', '.join(known)}.{suggest(name, known)}"
    )


def run_in_foreground(task: GenerateTask) -> int:
    """Run the worker with standard output passed through; return its exit code.

    Its settings arrive by pipe, so that no prompt stays on disk. If this process is interrupted, it
    ends the worker first; if it is killed, the worker notices and exits.
    """
    command = worker_command(task.name, Path("/dev/stdin"))
    env = {k: v for k, v in os.environ.items() if not k.startswith("DAGSTER_PIPES")}
    env.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its notes would stand beside the answer
    process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, start_new_session=True)
    assert process.stdin is not None
    try:
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(task.model_dump_json().encode())
        code = process.wait()
    finally:
        end_group(process.pid, lambda: 2.0)
        process.wait()
    if code < 0:
        raise PipelineError(
            f"the worker was killed by signal {-code} (9: out of memory, or killed by someone)."
        )
    return code


def read_prompt() -> str:
    """Read a prompt from standard input, without its trailing line end."""
    if sys.stdin.isatty():
        sys.stderr.write("Prompt (end with Ctrl-D):\n")
    try:
        return sys.stdin.read().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise PipelineError(
            f"standard input: not UTF-8 text ({error}). Convert it, or use --prompt."
        ) from error


def _load_other(chain: Chain, recipe: str) -> Chain:
    if recipe in ("", chain.name):
        return chain
    return load_other(chain, recipe)
