"""`ft-pipeline generate`: whose answer it is, how it comes, and how it ends.

The finetuned_model in the store is made by hand, a random adapter: the answers of a trained one
would prove no more.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.project import Project
from ft_pipeline.cli.generate import choose_adapter, define_task, find_owner
from ft_pipeline.graph.chain import Chain, load_chain
from ft_pipeline.graph.lookup import Lookup, open_store
from ft_pipeline.process.tasks import AdapterChoice, GenerateTask
from ft_pipeline_tests.conftest import TinyProject

PROMPT = "Generate a quiz question about rivers."


@dataclass(frozen=True)
class Answering:
    """A project with a finetuned_model in its store, and an adapter in a folder beside it."""

    project: TinyProject
    folder: Path

    @property
    def chain(self) -> Chain:
        return load_chain(Project(self.project.root, self.project.store), "quiz", {})

    @property
    def stored(self) -> Path:
        found = Lookup(self.chain).find("finetuned_model")
        assert found is not None
        return found.path

    def define(self, *adapters: str, **changed: Any) -> GenerateTask:
        given: dict[str, Any] = {"prompt": PROMPT, "system": None, "base_alone": False}
        sampling = {"max_new_tokens": 12}
        return define_task(self.chain, adapters, **given | {"sampling": sampling} | changed)


@pytest.fixture(scope="module")
def answering(fresh_project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Answering:
    root = tmp_path_factory.mktemp("answering")
    found = Answering(fresh_project.copy_to(root / "project"), root / "beside")
    found.project.edit_recipe(lambda data: data["training"].update(precision="fp32"))
    chain = found.chain
    for name in chain.inputs("finetuned_model"):
        found.project.build("--to", name)
    base_model = Lookup(chain).find("base_model")
    assert base_model is not None
    write_random_adapter(base_model.path, found.folder, seed=1)
    request = Lookup(chain).state("finetuned_model").require_request()
    with open_store(chain).draft(request.asset, request.ingredients, request.inputs) as draft:
        write_random_adapter(base_model.path, draft.path, seed=2)
        open_store(chain).publish(draft, [], run_id="by hand")
    return found


def write_random_adapter(base_model: Path, folder: Path, seed: int) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from ft_pipeline.worker.models.base_model import read_base

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base_model)
    config = LoraConfig(
        r=4, lora_alpha=16, target_modules=["o_proj", "down_proj"], init_lora_weights=False
    )
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = read_base(base_model)["id"]
    adapted.save_pretrained(folder, save_embedding_layers=False)


def answer_plainly(task: GenerateTask, adapter: Path | None) -> str:
    """The greedy answer of an adapter without any of the worker's code but its prompt."""
    import torch
    from peft import PeftModel

    from ft_pipeline.worker.inference.generate import encode_prompt
    from ft_pipeline.worker.models.loading import load_base, load_tokenizer

    tokenizer = load_tokenizer(task.base_model)
    base = load_base(task.base_model, "nf4", True, torch.float32).dequantize(torch.float32)
    model = PeftModel.from_pretrained(base, str(adapter)) if adapter else base
    ids = torch.tensor([encode_prompt(tokenizer, task.prompt, task.system)])
    output = model.eval().generate(input_ids=ids, max_new_tokens=12, do_sample=False)
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


def generate(
    answering: Answering, *arguments: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ft-pipeline", "generate", *arguments],
        cwd=answering.project.root,
        env=answering.project.environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def find_worker(parent: int) -> int:
    """The process id of a command's worker."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="utf-8").split()
    assert len(children) == 1
    return int(children[0])


def is_gone(pid: int, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["stored", "folder", "base"])
def test_answer_is_that_of_the_model_asked_for(answering: Answering, asked: str) -> None:
    """By default the recipe's finetuned_model; standard output holds the answer alone."""
    options = {"stored": (), "folder": ("--adapter", str(answering.folder)), "base": ("--base",)}
    adapter = {"stored": answering.stored, "folder": answering.folder, "base": None}[asked]
    if asked == "stored":
        done = generate(answering, "--prompt", PROMPT, "--max-new-tokens", "12")
    else:
        done = generate(answering, "--max-new-tokens", "12", *options[asked], stdin=f"{PROMPT}\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == answer_plainly(answering.define(), adapter).strip()
    assert "12 tokens in" in done.stderr


@pytest.mark.slow
def test_several_adapters_are_combined_by_weight(answering: Answering) -> None:
    import torch

    from ft_pipeline.worker.inference.generate import load_model

    torch.set_num_threads(1)
    ids = torch.arange(3, 30)[None]

    def compute(*adapters: str) -> Any:
        task = answering.define(*adapters)
        assert [choice.folder for choice in task.adapters] == [
            answering.folder if a.startswith("/") else answering.stored for a in adapters
        ]
        with torch.inference_mode():
            return load_model(task)(input_ids=ids).logits

    stored, beside = compute("finetuned_model"), compute(str(answering.folder))
    assert not torch.allclose(stored, beside, atol=0.05)
    folder = f"{answering.folder}=0"
    assert torch.allclose(compute("quiz/finetuned_model=1", folder), stored, atol=1e-5)
    both = compute("finetuned_model=0.5", f"{answering.folder}=0.5")
    assert not torch.allclose(both, stored, atol=0.05)
    assert not torch.allclose(both, beside, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_answer_streams_and_an_interrupt_ends_it(answering: Answering, sign: int) -> None:
    """Words come while the worker goes on, although a training holds the CPU; nothing stays."""
    folder = answering.project.root / f"ft_pipeline-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    options = ["--max-new-tokens", "900", "--temperature", "1", "--prompt", PROMPT]
    with (folder / "cpu.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(
            ["ft-pipeline", "generate", *options],
            cwd=answering.project.root,
            env=answering.project.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        first = os.read(process.stdout.fileno(), 4096)
        worker = find_worker(process.pid)
        os.kill(worker, signal.SIGSTOP)  # the tiny model would be done before the signal is there
        assert first
        assert process.poll() is None
        process.send_signal(sign)
        time.sleep(1)
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGCONT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert b"Traceback" not in errors
    assert b"tokens in" not in errors  # it was not done
    assert is_gone(worker)


@pytest.mark.slow
def test_reader_that_has_seen_enough_ends_it_quietly(answering: Answering) -> None:
    command = f"ft-pipeline generate --max-new-tokens 900 --temperature 1 -p '{PROMPT}' | head -c 3"
    done = answering.project.run("bash", "-o", "pipefail", "-c", command)
    assert done.returncode == 0
    assert len(done.stdout) == 3
    assert "Traceback" not in done.stderr and "Broken" not in done.stderr


@pytest.mark.slow
def test_workers_error_is_the_commands(answering: Answering, tmp_path: Path) -> None:
    done = generate(answering, "--adapter", str(tmp_path), "--prompt", PROMPT)
    assert done.returncode == 1
    assert f"{tmp_path}: not an adapter, because it has no adapter_config.json" in done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr


def test_missing_model_names_the_command_and_torch_is_not_imported(
    fresh_project: TinyProject, tmp_path: Path
) -> None:
    code = (
        "import sys\nfrom ft_pipeline.cli.main import app\n"
        "try:\n    app(['generate', '--prompt', 'x'], standalone_mode=False)\n"
        "except Exception as error:\n    print(error, 'torch' in sys.modules)\n"
    )
    done = fresh_project.copy_to(tmp_path / "project").run(sys.executable, "-c", code)
    assert "--to finetuned_model" in done.stdout, done.stderr
    assert done.stdout.strip().endswith("False")


@pytest.mark.parametrize(
    ("adapters", "changed", "message"),
    [
        (("finetuned_model=x",), {}, "`x` is not a number"),
        (("finetuned_model=nan",), {}, "weight"),
        (("finetuned_mode",), {}, "neither a folder .* Did you mean `finetuned_model`"),
        (("base_model",), {}, "neither a folder .* nor an asset with an adapter"),
        (
            ("other/finetuned_model",),
            {},
            "ce_model, quiz/finetuned_model",
        ),
        (("finetuned_model",), {"base_alone": True}, "Give either --base or --adapter"),
        ((), {"prompt": " \n"}, "the prompt is empty"),
        ((), {"sampling": {"top_p": 2.0}}, "generate: top_p: .*less than or equal to 1"),
    ],
)
def test_wrong_request_is_refused(
    answering: Answering, adapters: tuple[str, ...], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(PipelineError, match=message):
        answering.define(*adapters, **changed)


def test_settings_come_from_the_recipe_unless_given(answering: Answering) -> None:
    task = answering.define(sampling={"temperature": 0.5, "seed": None})
    assert task.adapters == (AdapterChoice(folder=answering.stored, weight=1.0),)
    assert task.quantization == "nf4"
    assert (task.generation.max_new_tokens, task.generation.temperature) == (8, 0.5)
    assert task.generation.seed == 42


@pytest.mark.parametrize(
    ("named", "asset"),
    [
        (("distilled_model",), "distilled_model"),
        (("distilled_model=0.5",), "distilled_model"),
        (("quiz/ce_model=0.5", "distilled_model=0.5"), "ce_model"),
        (("finetuned_model=0.5", "distilled_model=0.5"), "finetuned_model"),
        (("somewhere/distilled_model",), "finetuned_model"),  # a folder of that name
    ],
)
def test_students_adapters_lie_on_the_student(
    answering: Answering, named: tuple[str, ...], asset: str
) -> None:
    chain, trained = find_owner(answering.chain, named)
    assert (chain.name, trained) == ("quiz", asset)


def test_folder_with_an_equals_sign_is_a_folder(answering: Answering, tmp_path: Path) -> None:
    folder = tmp_path / "a=1"
    folder.mkdir()
    assert choose_adapter(answering.chain, str(folder)) == AdapterChoice(folder=folder)
    assert choose_adapter(answering.chain, f"{folder}=2") == AdapterChoice(folder=folder, weight=2)


def test_prompt_that_does_not_fit_is_refused(answering: Answering) -> None:
    from ft_pipeline.worker.inference import generate as worker

    task = answering.define(base_alone=True, sampling={"max_new_tokens": 1020})
    with pytest.raises(
        PipelineError, match=r"answer may have 1020, but the model's context is 1024"
    ):
        worker.run(task)


def test_system_turn_comes_before_the_prompt(answering: Answering) -> None:
    from ft_pipeline.worker.inference.generate import encode_prompt
    from ft_pipeline.worker.models.loading import load_tokenizer

    tokenizer = load_tokenizer(answering.define(base_alone=True).base_model)
    text = tokenizer.decode(encode_prompt(tokenizer, "Ask.", "Be short."))
    assert text == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nAsk.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    tokenizer.chat_template = "{{ raise_exception('no system turn') }}"
    with pytest.raises(
        PipelineError, match=r"refuses this chat: no system turn.*leave out --system"
    ):
        encode_prompt(tokenizer, "Ask.", "Be short.")
