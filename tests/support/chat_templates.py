"""Chat templates in the structure of ten model families, written for the tests, and their tokenizers."""

from dataclasses import dataclass
from typing import Any

from tests.support.tokenisers import tokenizer


@dataclass(frozen=True)
class Family:
    """A template, and the special tokens that it writes; the last one is the end of sequence."""

    template: str
    specials: tuple[str, ...]
    plain: tuple[str, ...] = ()
    """Added tokens that are not special."""
    systems: bool = True
    """Whether it takes system turns."""
    around_the_last: tuple[str, str] = ("", "")
    """What it writes before and after the last answer alone."""

    def tokenizer(self) -> Any:
        own = tokenizer(self.template)
        own.add_special_tokens({"additional_special_tokens": list(self.specials)})
        own.add_tokens(list(self.plain))
        own.eos_token = self.specials[-1]
        return own


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_CALLS = (
    '{% for call in m.tool_calls or [] %}{{ \'\n<tool_call>\n{"name": "\' + call.function.name }}'
    "{{ '\", \"arguments\": ' }}{{ call.function.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}"
)
_TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n# Tools\n<tools>' }}"
    "{% for tool in tools %}{{ '\n' }}{{ tool | tojson }}{% endfor %}{{ '\n</tools><|im_end|>\n' }}"
)
_QWEN_SYSTEM = (
    _TOOLS + "{% elif messages[0].role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
)  # fmt: skip
_QWEN_TOOL = (
    "{% elif m.role == 'tool' %}{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response>"
    "<|im_end|>\n' }}"
)
QWEN25 = (
    _QWEN_SYSTEM + "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ '<|im_start|>assistant' }}{% if m.content %}{{ '\n' + m.content }}{% endif %}"
    + _CALLS + "{{ '<|im_end|>\n' }}" + _QWEN_TOOL +
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)  # fmt: skip
QWEN3 = (
    _TOOLS + "{% endif %}{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set content = m.content or '' %}{% set thought = m.reasoning_content or '' %}"
    "{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
    "{% else %}{{ content }}{% endif %}" + _CALLS + "{{ '<|im_end|>\n' }}" + _QWEN_TOOL +
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)  # fmt: skip
GEMMA = (
    "{{ '<bos>' }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ '<s>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% elif m.role == 'system' %}{{ raise_exception('only user and assistant') }}"
    "{% else %}{{ ' ' + m.content | trim + '</s>' }}{% endif %}{% endfor %}"
)
PHI4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ '<|endoftext|>' }}{% endif %}"
)
DEEPSEEK_R1 = (
    "{{ '<｜begin▁of▁sentence｜>' }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{% else %}{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
GLM = (
    "{{ '[gMASK]<sop>' }}{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
IM = ("<|im_start|>", "<|endoftext|>", "<|im_end|>")
THINK = ("<think>", "</think>", "<tool_call>", "</tool_call>")

FAMILIES = {
    "chatml": Family(CHATML, IM),
    "llama-3": Family(
        LLAMA3, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    ),
    "qwen2.5": Family(QWEN25, IM, THINK),
    "qwen3": Family(QWEN3, IM, THINK, around_the_last=("<think>\n\n</think>\n\n", "")),
    "gemma": Family(
        GEMMA, ("<bos>", "<start_of_turn>", "<end_of_turn>", "<eos>"), systems=False
    ),
    "mistral": Family(MISTRAL, ("<s>", "[INST]", "[/INST]", "</s>"), systems=False),
    "phi-4": Family(PHI4, ("<|im_start|>", "<|im_sep|>", "<|im_end|>", "<|endoftext|>")),
    "phi-3": Family(
        PHI3, ("<|user|>", "<|system|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
        around_the_last=("", "<|endoftext|>"),
    ),
    "deepseek-r1": Family(
        DEEPSEEK_R1,
        ("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
        ("<think>", "</think>"),
    ),
    "glm": Family(
        GLM, ("[gMASK]", "<sop>", "<|user|>", "<|system|>", "<|assistant|>", "<|endoftext|>")
    ),
}  # fmt: skip
