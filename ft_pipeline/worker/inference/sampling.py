"""How answers are generated, as arguments of `model.generate`."""

from typing import Any

from ft_pipeline.config.recipe import Generation


def choose_sampling(generation: Generation, tokenizer: Any) -> dict[str, Any]:
    """Return transformers' arguments: greedy at temperature 0, otherwise nucleus sampling.

    Anything left out would come from the model's own generation_config.
    """
    given = {
        "max_new_tokens": generation.max_new_tokens,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "repetition_penalty": 1.0,
    }
    if generation.temperature == 0:
        return {**given, "do_sample": False}
    return {
        **given,
        "do_sample": True,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "top_k": 0,  # transformers would keep the best 50 tokens only
    }
