"""Answers one prompt on standard output, token by token: `ft-pipeline generate`.

    {"prompt": "Generate a quiz question about rivers.", "quantization": "nf4", …,
     "adapters": [{"folder": "…", "weight": 0.7}, {"folder": "…", "weight": 0.3}]}

Several adapters are combined by their weights. Everything else goes to standard error.
"""

import logging
import os
import sys
from time import monotonic
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import TextStreamer

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.recipe import Generation
from ft_pipeline.process.tasks import GenerateTask, ModelSpec
from ft_pipeline.worker.data.tokens import encode, render_prompt
from ft_pipeline.worker.hardware import choose_device, choose_dtype
from ft_pipeline.worker.inference.sampling import choose_sampling
from ft_pipeline.worker.models.adapters import Adapters
from ft_pipeline.worker.models.loading import load_tokenizer, load_whole
from ft_pipeline.worker.models.model_spec import is_whole_model, load_unpacked_base

logger = logging.getLogger(__name__)


def run(task: GenerateTask) -> dict[str, Any]:
    """Stream the answer; return its number of tokens and the seconds they took."""
    tokenizer = load_tokenizer(task.tokenizer_of)
    ids = encode_prompt(tokenizer, task.prompt, task.system)
    model = load_model(task)
    check_length(model, len(ids), task.generation.max_new_tokens)
    start = monotonic()
    try:
        count = stream_answer(model, tokenizer, ids, task.generation)
    except BrokenPipeError:  # who reads has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return {}
    seconds = monotonic() - start
    logger.info("%d tokens in %.1f s (%.1f tokens/s)", count, seconds, count / seconds)
    return {"tokens": count, "seconds": round(seconds, 2)}


def encode_prompt(tokenizer: Any, prompt: str, system: str | None) -> list[int]:
    """Return the prompt's tokens, rendered as in training. Raises PipelineError."""
    history = [{"role": "system", "content": system}] if system else []
    try:
        return encode(tokenizer, render_prompt(tokenizer, {"prompt": prompt, "history": history}))
    except TemplateError as error:
        raise PipelineError(
            f"the model's chat template refuses this chat: {error}. Some templates have no system "
            "turn; leave out --system."
        ) from error


def load_model(task: GenerateTask) -> Any:
    """Load the base as in training, with the task's adapter or combination active."""
    dtype = choose_dtype(task.precision)
    weights = [choice.weight for choice in task.adapters]
    if weights == [1.0] and is_whole_model(task.adapters[0].folder):
        return load_whole(task.adapters[0].folder, dtype).eval()
    spec = ModelSpec(
        base_model=task.base_model,
        quantization=task.quantization,
        double_quantization=task.double_quantization,
    )
    adapters = Adapters(load_unpacked_base(spec, dtype), task.base_model)
    names = [f"adapter_{number}" for number in range(1, len(task.adapters) + 1)]
    for name, choice in zip(names, task.adapters, strict=True):
        adapters.load(name, choice.folder)
        logger.info("adapter %s, weight %g", choice.folder, choice.weight)
    if weights == [1.0]:
        adapters.use(names[0])
    elif weights:
        adapters.combine("combined", names, weights)
        adapters.use("combined")
    return adapters.base


def check_length(model: Any, prompt: int, max_new_tokens: int) -> None:
    """Raise PipelineError if prompt and answer do not fit into the model's context."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit and prompt + max_new_tokens > limit:
        raise PipelineError(
            f"the prompt has {prompt} tokens and the answer may have {max_new_tokens}, but the "
            f"model's context is {limit} tokens. Shorten the prompt, or lower --max-new-tokens."
        )


@torch.inference_mode()  # type: ignore[untyped-decorator]
def stream_answer(model: Any, tokenizer: Any, ids: list[int], generation: Generation) -> int:
    """Write the answer to standard output word by word; return its length in tokens."""
    torch.manual_seed(generation.seed)
    prompt = torch.tensor([ids], device=choose_device())
    output = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        **choose_sampling(generation, tokenizer),
    )
    return int(output.shape[1]) - len(ids)
