"""The chat template for rendering examples: the model's own, or one made for training.

A model's own template is right unless it renders an answer differently from how the model writes
it. DeepSeek-R1's does: it removes the thoughts from an answer, and starts every generated answer
with `<think>`, which it then omits from that answer's text. Here, both agree:

    asked:  <｜begin▁of▁sentence｜><｜User｜>Why?<｜Assistant｜><think>\\n
    whole:  <｜begin▁of▁sentence｜><｜User｜>Why?<｜Assistant｜><think>\\n
            Because.\\n</think>\\n\\nSo.<｜end▁of▁sentence｜>
"""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

# Turns, tokens and the prompt are those of deepseek-ai/DeepSeek-R1-Distill-* (February 2025; Llama
# and Qwen share them). What differs is the last answer: it is kept whole and ends with EOS. It
# begins with `<think>` as its prompt does, so an answer without thoughts gets the empty block that
# the model itself writes when it does not think (model card, usage recommendations): without one,
# it would learn to answer inside of thoughts that never end. Answers before the last one lose
# their thoughts, as with DeepSeek: the model never sees earlier thoughts when it is used.
DEEPSEEK_R1 = """\
{%- set ns = namespace(system='') -%}
{%- for message in messages if message['role'] == 'system' -%}
  {%- set ns.system = message['content'] -%}
{%- endfor -%}
{{- bos_token + ns.system -}}
{%- for message in messages -%}
  {%- set content = message['content'] -%}
  {%- if message['role'] == 'user' -%}
    {{- '<｜User｜>' + content -}}
  {%- elif message['role'] == 'assistant' and not loop.last -%}
    {{- '<｜Assistant｜>' + content.split('</think>')[-1] + eos_token -}}
  {%- elif message['role'] == 'assistant' -%}
    {%- set start = content.lstrip() -%}
    {%- if start.startswith('<think>') -%}
      {%- set start = start[7:] -%}
      {%- set start = start[1:] if start.startswith('\\n') else start -%}
    {%- else -%}
      {%- set start = '\\n</think>\\n\\n' + content -%}
    {%- endif -%}
    {{- '<｜Assistant｜><think>\\n' + start + eos_token -}}
  {%- elif message['role'] != 'system' -%}
    {{- raise_exception('role ' + message['role'] + ': a turn is of system, user or assistant') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<｜Assistant｜><think>\\n' -}}{%- endif -%}
"""


@dataclass(frozen=True)
class ChatTemplate:
    """A template and its origin; `text` is Jinja, None for the plain form."""

    origin: str
    text: str | None


PLAIN = ChatTemplate("none", None)
FOR_DEEPSEEK_R1 = ChatTemplate("training (deepseek_r1)", DEEPSEEK_R1)


def choose_template(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """Return the template for a tokenizer's examples: `none`, `own` or `training (…)`.

    DeepSeek-R1's template is recognised by its text, even under another model name: its turns, and
    the cut after `</think>`.
    """
    if tokenizer.chat_template is None:
        return PLAIN
    own = str(tokenizer.get_chat_template())
    if "<｜User｜>" in own and "<｜Assistant｜>" in own and "split('</think>')" in own:
        return FOR_DEEPSEEK_R1
    return ChatTemplate("own", own)
