"""The worker: `python -m ft_pipeline.worker <task> --config <run folder>/config.json`.

Started by the launcher through Dagster Pipes, which holds the device for it, or by hand to repeat
a step from its config.json. By hand, it takes the device itself, an output folder that is gone (it
was published into the store) is made again below the run folder, and the result is printed. Exit
codes: 0 done, 1 failed, 143 asked to shut down.
"""

import argparse
import importlib
import json
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from dagster_pipes import PipesContext, PipesEnvVarParamsLoader, open_dagster_pipes
from safetensors import SafetensorError

from ft_pipeline.base.activity import activity
from ft_pipeline.base.errors import PipelineError, explain_os_error
from ft_pipeline.base.hashing import META
from ft_pipeline.base.settings import validate
from ft_pipeline.process.device_lock import take_device
from ft_pipeline.process.tasks import (
    TASK_FILE,
    TASKS,
    BaseModelTask,
    EvaluateTask,
    GenerateTask,
    PruneTask,
    TeacherLogitsTask,
    TokensTask,
    TrainTask,
    WorkerTask,
)
from ft_pipeline.worker.environment import set_library_defaults
from ft_pipeline.worker.log import set_up_log
from ft_pipeline.worker.shutdown import GracefulShutdown

RUNNERS = {
    BaseModelTask.name: "ft_pipeline.worker.models.base_model",
    TokensTask.name: "ft_pipeline.worker.data.tokens",
    PruneTask.name: "ft_pipeline.worker.distillation.student",
    TeacherLogitsTask.name: "ft_pipeline.worker.distillation.teacher_logits",
    TrainTask.name: "ft_pipeline.worker.training.train",
    EvaluateTask.name: "ft_pipeline.worker.inference.evaluate",
    GenerateTask.name: "ft_pipeline.worker.inference.generate",
}

logger = logging.getLogger("ft_pipeline.worker")


def main() -> int:
    """Parse the arguments, do the task, report; return the exit code."""
    set_library_defaults()
    parser = argparse.ArgumentParser(prog="python -m ft_pipeline.worker", description=__doc__)
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--config", required=True, type=Path, help="config.json of a run folder")
    arguments = parser.parse_args()
    set_up_log()
    signal.signal(signal.SIGTERM, _shut_down)
    # Named by the launcher: where it was killed already, this process has another parent.
    _end_with_parent(int(os.environ.pop("FT_PARENT", os.getppid())))
    by_hand = not PipesEnvVarParamsLoader().is_dagster_pipes_process()
    try:
        task = _read_task(arguments.task, arguments.config)
        if isinstance(task, TrainTask):
            task = task.model_copy(update={"run_folder": arguments.config.parent})
        if by_hand:
            return _run_by_hand(task, arguments.config.parent / "output")
        with open_dagster_pipes() as pipes:
            return _run_for_dagster(task, pipes)
    except GracefulShutdown:
        return 128 + signal.SIGTERM
    except PipelineError as error:
        logger.error("%s", error)
        return 1


def _run_by_hand(task: WorkerTask, output: Path) -> int:
    if task.needs_device:
        device = take_device(task.name, logger.info)
        os.environ.update(device.environment)
    report = _run(_redirect_output(task, output))
    if not isinstance(task, GenerateTask):  # its answer alone goes to standard output
        print(json.dumps(report, indent=1, default=str))  # noqa: T201  (by hand)
    return 0


def _run_for_dagster(task: WorkerTask, pipes: PipesContext) -> int:
    try:
        pipes.report_custom_message({"report": _run(task)})
    except GracefulShutdown as error:
        pipes.report_custom_message({"error": str(error)})
        return 128 + signal.SIGTERM
    except PipelineError as error:
        pipes.report_custom_message({"error": str(error)})
        sys.stderr.write(f"{error}\n")  # for worker.log: the launcher shows what it was told
        return 1
    except (OSError, SafetensorError) as error:
        explained = explain_os_error(_as_os_error(error), _outputs(task)[0])
        pipes.report_custom_message({"error": str(explained)})
        traceback.print_exc()
        return 1
    return 0


def _as_os_error(error: Exception) -> OSError:
    """Return the OSError inside; safetensors only has its number in the message."""
    if isinstance(error, OSError):
        return error
    match = re.search(r"os error (\d+)", str(error))
    return OSError(int(match[1]), str(error)) if match else OSError(str(error))


def _run(task: WorkerTask) -> dict[str, Any]:
    with activity("loading the libraries"):
        import torch

        from ft_pipeline.worker.hardware import choose_threads

        torch.set_num_threads(choose_threads())
        # Only what the task needs is imported; training chooses its imports itself (unsloth first).
        work = importlib.import_module(RUNNERS[task.name])
    return dict(work.run(task))


def _read_task(name: str, config: Path) -> WorkerTask:
    try:
        data = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PipelineError(f"{config}: cannot be read as JSON: {error}.") from error
    return validate(TASKS[name], data, str(config))


def _outputs(task: WorkerTask) -> list[Path]:
    if isinstance(task, TokensTask):
        return [side.output for side in task.sides.values()]
    if isinstance(task, EvaluateTask):
        return [model.output for model in task.models.values()]
    return [] if isinstance(task, GenerateTask) else [task.output]


def _redirect_output(task: WorkerTask, folder: Path) -> WorkerTask:
    """Point outputs that no longer exist below `folder`."""
    if all(output.is_dir() for output in _outputs(task)):
        return task
    data = task.model_dump(mode="json")
    if isinstance(task, TokensTask | EvaluateTask):
        parts = data["sides" if isinstance(task, TokensTask) else "models"]
        for asset, part in parts.items():
            part["output"] = str(folder / asset)
    else:
        data["output"] = str(folder)
    moved = validate(type(task), data, TASK_FILE)
    for output in _outputs(moved):
        (output / META).mkdir(parents=True, exist_ok=True)
    return moved


def _shut_down(_sign: int, _frame: object) -> None:
    logger.info("asked to shut down")
    raise SystemExit(128 + signal.SIGTERM)


def _end_with_parent(parent: int) -> None:
    """End this process soon after its parent has gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.killpg(0, signal.SIGTERM) if os.getpgrp() == os.getpid() else os._exit(143)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
