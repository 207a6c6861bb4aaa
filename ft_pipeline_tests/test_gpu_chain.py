"""The whole chain on a GPU, by the commands that people type: `pytest -m gpu`."""

import json
from pathlib import Path

import pytest
import torch

from ft_pipeline_tests.conftest import TinyProject
from ft_pipeline_tests.test_distillation_chain import add_distillation

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


def test_the_whole_chain_with_a_student_is_built_on_the_gpu(
    fresh_project: TinyProject, tmp_path: Path
) -> None:
    project = fresh_project.copy_to(tmp_path / "project")
    project.edit_recipe(add_distillation)
    assert set(project.build().values()) == {"built"}
    card = torch.cuda.get_device_name()
    for asset in ("finetuned_model", "student_model", "teacher_logits", "distilled_model"):
        (file,) = (project.store / asset).glob("*/manifest.json")
        manifest = json.loads(file.read_text(encoding="utf-8"))
        assert manifest["resolved"]["device"] == card, asset
    assert set(project.build().values()) == {"reused"}
    losses = json.loads(
        next((project.store / "evaluation").glob("*/comparison.json")).read_text(encoding="utf-8")
    )
    assert set(losses) == {"base", "finetuned", "student", "ce", "distilled"}
    for name in ("finetuned_model", "distilled_model"):
        done = project.run(
            *("ft-pipeline", "generate", "--adapter", name, "--max-new-tokens", "4"),
            *("--prompt", "Generate a quiz question about rivers."),
        )
        assert done.returncode == 0, done.stderr
