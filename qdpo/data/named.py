"""Chat templates by name, for tokenizers that bring none or the wrong one: the handbook's and other common formats."""

from __future__ import annotations

NAMED = {
    "zephyr": (
        "{% for message in messages %}"
        "<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}"
        "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "gemma-chatml": (
        "{{ bos_token }}{% for message in messages %}"
        "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% if message['role'] == 'assistant' and loop.last %}{{ eos_token }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    # Meta's Llama 3 Instruct
    "llama-3": (
        "{{ bos_token }}{% for message in messages %}"
        "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    # Mistral 7B Instruct v0.1 and v0.2; a system message is put before the first question
    "mistral": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'system' %}{% continue %}{% endif %}"
        "{% if message['role'] == 'user' %}"
        "[INST] {% if loop.previtem is defined and loop.previtem['role'] == 'system' and loop.previtem['content'] %}"
        "{{ loop.previtem['content'] | trim }}\n\n{% endif %}{{ message['content'] | trim }} [/INST]"
        "{% else %} {{ message['content'] | trim }}{{ eos_token }}{% endif %}"
        "{% endfor %}"
    ),
}
NAMES = ", ".join(NAMED)
WAY_OUT = f"choose another with data.template: {NAMES}, none, or a file"
