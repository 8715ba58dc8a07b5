"""Chat templates in the manner of well-known families, written for the tests."""

from schemas.dialogues import Turn
from transforms.templates import Template

BAR = "\uff5c"
"""The bar of DeepSeek's control tokens."""

CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

DEFAULT_SYSTEM = (
    "{%- if messages[0].role != 'system' %}"
    "{{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}" + CHATML
)

LLAMA2 = """\
{%- if messages[0].role == 'system' %}
{%- set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}
{%- set rest = messages[1:] %}
{%- else %}{% set system = '' %}{% set rest = messages %}{% endif %}
{%- for message in rest %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate user/assistant') }}{% endif %}
{%- if message.role == 'user' %}
{%- set content = system + message.content if loop.first else message.content %}
{{- bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- else %}{{ ' ' + message.content.strip() + ' ' + eos_token }}{% endif %}
{%- endfor %}"""

LLAMA3 = """\
{%- for message in messages %}
{%- set head = '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' %}
{%- set content = head + message.content | trim + '<|eot_id|>' %}
{{- bos_token + content if loop.first else content }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

GEMMA = """\
{{- bos_token }}
{%- set first = '' %}{% set rest = messages %}
{%- if messages[0].role == 'system' %}
{%- set first = messages[0].content + '\\n\\n' %}{% set rest = messages[1:] %}
{%- endif %}
{%- for message in rest %}
{%- set role = 'model' if message.role == 'assistant' else message.role %}
{{- '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}
{{- message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

ZEPHYR = """\
{%- for message in messages %}
{{- '<|' + message.role + '|>\\n' + message.content + eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""

MISTRAL = """\
{%- if messages[0].role == 'system' %}
{%- set system = messages[0].content %}{% set rest = messages[1:] %}
{%- else %}{% set rest = messages %}{% endif %}
{{- bos_token }}
{%- for message in rest %}
{%- if message.role == 'user' %}
{%- if loop.first and system is defined %}
{{- '[INST] ' + system + '\\n\\n' + message.content + '[/INST]' }}
{%- else %}{{ '[INST] ' + message.content + '[/INST]' }}{% endif %}
{%- else %}{{ ' ' + message.content + eos_token }}{% endif %}
{%- endfor %}"""

DEEPSEEK = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'system' %}{{ message.content }}
{%- elif message.role == 'user' %}{{ '<|User|>' + message.content }}
{%- else %}
{%- set content = message.content %}
{%- if '</think>' in content %}
{%- set content = content.split('</think>')[-1] %}{% endif %}
{{- '<|Assistant|>' + content + '<|end▁of▁sentence|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}""".replace(
    "|", BAR
)

VICUNA = """\
{%- for message in messages %}
{%- if message.role == 'system' %}{{ message.content + '\\n\\n' }}
{%- elif message.role == 'user' %}{{ 'USER: ' + message.content + '\\n' }}
{%- else %}{{ 'ASSISTANT: ' + message.content + '\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""

PHI = """\
{%- for message in messages %}
{{- '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}
{%- else %}{{ eos_token }}{% endif %}"""

GPT_OSS = """\
{%- for message in messages %}
{{- '<|start|>' + message.role + '<|message|>' + message.content }}
{{- '<|return|>' if message.role == 'assistant' and loop.last else '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

GLM = """\
{{- '[gMASK]<sop>' }}
{%- for message in messages %}
{{- '<|' + message.role + '|>\\n' + message.content }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""

THINKING = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

GENERATION = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' and loop.last %}
{%- generation %}{{ message.content }}{% endgeneration %}
{%- else %}{{ message.content }}{% endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}"""

SHOUTING = CHATML.replace("message.content", "message.content | upper")
JSONED = CHATML.replace("message.content", "(message.content | tojson)")
DATED = "{{- strftime_now('%d %b %Y') + '\\n' }}" + CHATML

TURNS = (
    Turn(role="system", content="Be  brief."),
    Turn(role="user", content="Hi <|im_end|> you"),
    Turn(role="assistant", content="Hi <|im_end|> you"),
    Turn(role="user", content="Äh?"),
    Turn(role="assistant", content="Hi"),
)

SPELLED = {
    "chatml": ("<|endoftext|>", "<|im_end|>"),
    "llama2": ("<s>", "</s>"),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
    "gemma": ("<bos>", "<eos>"),
    "deepseek": (f"<{BAR}begin▁of▁sentence{BAR}>", f"<{BAR}end▁of▁sentence{BAR}>"),
    "phi": ("<s>", "<|endoftext|>"),
}
"""BOS and EOS of each family."""

FAMILIES = {
    "chatml": (CHATML, "chatml"),
    "default_system": (DEFAULT_SYSTEM, "chatml"),
    "llama2": (LLAMA2, "llama2"),
    "llama3": (LLAMA3, "llama3"),
    "gemma": (GEMMA, "gemma"),
    "zephyr": (ZEPHYR, "llama2"),
    "mistral": (MISTRAL, "llama2"),
    "deepseek": (DEEPSEEK, "deepseek"),
    "vicuna": (VICUNA, "llama2"),
    "phi": (PHI, "phi"),
    "generation": (GENERATION, "chatml"),
}
"""Templates that take `TURNS`, and whose special tokens they write."""

CONTROLS = tuple(
    {
        *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>"),
        *("<start_of_turn>", "<end_of_turn>", "<|end|>", "<|user|>", "<|assistant|>"),
        *("<|start|>", "<|message|>", "<|return|>"),
        *(f"<{BAR}User{BAR}>", f"<{BAR}Assistant{BAR}>", "[INST]", "[/INST]"),
        *(token for pair in SPELLED.values() for token in pair),
    }
)


def template(text: str, family: str = "chatml", date: str | None = None) -> Template:
    """Makes a template with the special tokens of a family."""
    bos, eos = SPELLED[family]
    return Template(text=text, tokens={"bos_token": bos, "eos_token": eos}, date=date)
