"""Small chat templates, each with the ways of one family to write tools, calls and results."""

_TURNS = """{%- for m in messages %}
{{- '<|' + m.role + '|>' + m.content + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""

PLAIN = _TURNS

HERMES = """{%- if tools %}{{ '<|system|><tools>' }}
{%- for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}
{{- '\\n</tools><|end|>' }}{% endif %}
{%- for m in messages %}
{%- if m.role == 'tool' %}{{ '<|user|><tool_response>' + m.content + '</tool_response><|end|>' }}
{%- else %}{{ '<|' + m.role + '|>' + m.content }}
{%- for call in m.tool_calls or [] %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- (call.function.arguments | tojson) + '}\\n</tool_call>' }}{% endfor %}{{ '<|end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}{% endif %}"""

MISTRAL = """{%- for m in messages %}
{%- if m.role == 'user' %}
{%- if tools %}{{ '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}
{{- '[INST]' + m.content + '[/INST]' }}
{%- elif m.tool_calls %}{{ '[TOOL_CALLS][' }}
{%- for call in m.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}
{{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}
{%- if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}{{ ']</s>' }}
{%- elif m.role == 'tool' %}
{{- '[TOOL_RESULTS]{"content": ' + m.content + ', "call_id": "' + m.tool_call_id + '"}' }}
{%- elif m.role == 'assistant' %}{{ m.content + '</s>' }}
{%- else %}{{ raise_exception('only users and assistants speak') }}{% endif %}
{%- endfor %}"""

LLAMA3 = """{%- if not tools is defined %}{% set tools = none %}{% endif %}
{{- '<|system|>' }}{% if tools is not none %}
{{- 'Environment: ipython\\n' + (tools | tojson) }}{% endif %}
{{- '<|end|>' }}{%- for m in messages %}
{%- if 'tool_calls' in m %}
{%- if m.tool_calls | length != 1 %}{{ raise_exception('one call at once') }}{% endif %}
{{- '<|assistant|>{"name": "' + m.tool_calls[0].function.name + '", "parameters": ' }}
{{- (m.tool_calls[0].function.arguments | tojson) + '}<|end|>' }}
{%- elif m.role == 'tool' or m.role == 'ipython' %}
{{- '<|ipython|>' + (m.content | tojson) + '<|end|>' }}
{%- else %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""

GRANITE = (
    "{%- if tools %}{{ '<|system|>answer with <|tool_call|> and a list' + (tools | tojson) }}"
    "{{- '<|end|>' }}{% endif %}" + _TURNS
)

PHI = """{%- for m in messages %}
{%- if m.role == 'system' and 'tools' in m and m.tools is not none %}
{{- '<|system|>' + m.content + '<|tool|>' + m.tools + '<|/tool|><|end|>' }}
{%- else %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""

DEEPSEEK = """{%- for m in messages %}
{%- if m.role == 'assistant' and m.tool_calls %}
{%- for call in m.tool_calls %}
{{- '<|call|>' + call.function.name + '\\n' + call.function.arguments + '<|end|>' }}{% endfor %}
{%- elif m.role == 'tool' %}{{ '<|output|>' + m.content }}
{%- else %}{{ '<|' + m.role + '|>' + m.content.split('</think>')[-1] }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}"""

SMOLLM3 = (
    """{%- if xml_tools %}{{ '<tool_call>' + (xml_tools | tojson) + '<think>' }}{% endif %}"""
    + _TURNS
)

NO_SYSTEM = """{%- for m in messages %}
{%- if m.role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}
{{- '<|' + m.role + '|>' + m.content + '<|end|>' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
