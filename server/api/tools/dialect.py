"""How the chats of one model write tools and reasoning: to its template, and from its answers."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from server.api.prompt.chat_template import Chat, ChatTemplate, TemplateFailedError
from server.api.tools.answer_splitter import AnswerSplitter
from server.api.tools.history import adapt_history, with_system_text
from server.api.tools.instructions import instructions
from server.api.tools.reasoning_form import ReasoningForm, reasoning_of_template
from server.api.tools.reasoning_parser import ReasoningParser
from server.api.tools.template_abilities import TemplateAbilities, find_abilities, with_tools
from server.api.tools.tool_form import TOOL_FORMS, ToolForm, form_of_template
from server.api.tools.tool_parser import ToolParser
from server.api.tools.tool_use import ToolUse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AUTO = "auto"
"""The name of the parser that the chat template chooses."""


@dataclass(frozen=True, slots=True)
class ChatDialect:
    """A model's way to write calls and reasoning, and what its template can write.

    `tool_marks` and `reasoning_marks` are the special tokens among the marks of both; `variables`
    are those that the template reads.
    """

    form: ToolForm
    reasoning: ReasoningForm | None
    abilities: TemplateAbilities
    variables: Collection[str] = ()
    tool_marks: frozenset[int] = frozenset()
    reasoning_marks: frozenset[int] = frozenset()

    def prepare(self, chat: Chat, use: ToolUse | None, constrained: bool = False) -> Chat:
        """Return a chat as the template takes it, with the tools that may be used.

        The form of a `constrained` answer leaves no room for reasoning.
        """
        if constrained and self.reasoning is not None:
            chat = replace(chat, ended_reasoning=(self.reasoning.begin, self.reasoning.end))
        messages = adapt_history(chat.messages, self.form, self.abilities)
        if use is None:
            return replace(chat, messages=messages)
        if self.abilities.tools is None:
            text = instructions(use, self.form)
            chat = replace(chat, messages=with_system_text(messages, text, self.abilities))
        else:
            chat = replace(chat, messages=messages)
            chat = with_tools(chat, use.for_template(), self.abilities.tools)
        return replace(chat, beginning=self.beginning(use))

    def beginning(self, use: ToolUse) -> str:
        """Return what the answer begins with, "" unless a tool must be called."""
        if not use.required:
            return ""
        if len(use.functions) == 1:
            return self.form.before_arguments(next(iter(use.functions)))
        return self.form.around[0]

    def splitter(
        self, use: ToolUse | None, prompt_end: str, separate_reasoning: bool = True
    ) -> AnswerSplitter | None:
        """Return what splits an answer to a prompt; None where there is nothing to split."""
        tools = reasoning = None
        if use is not None:
            several = use.parallel and self.abilities.several
            tools = ToolParser(self.form, use.functions, None if several else 1)
        if self.reasoning is not None and separate_reasoning:
            inside = prompt_end.rstrip().endswith(self.reasoning.begin)
            reasoning = ReasoningParser(self.reasoning, inside)
        return None if tools is None and reasoning is None else AnswerSplitter(reasoning, tools)

    def shown(self, use: ToolUse | None) -> frozenset[int]:
        """Return the special tokens whose text belongs to an answer."""
        return self.reasoning_marks if use is None else self.reasoning_marks | self.tool_marks

    def reasoning_variables(self, effort: str | None) -> dict[str, Any]:
        """Return the template's variables for an effort of reasoning, `none` for no reasoning."""
        if effort is None:
            return {}
        if "reasoning_effort" in self.variables:
            return {"reasoning_effort": effort}
        switches = {"enable_thinking", "thinking"} & set(self.variables)
        return dict.fromkeys(switches, effort != "none")


def open_dialect(
    template: ChatTemplate | TemplateFailedError,
    tokenizer: "PreTrainedTokenizerBase",
    parser: str = AUTO,
) -> ChatDialect:
    """Return the dialect of a model, whose form of calls is `parser` or that of its template."""
    source = template.source if isinstance(template, ChatTemplate) else None
    form = form_of_template(source) if parser == AUTO else TOOL_FORMS[parser]
    reasoning = reasoning_of_template(source)
    abilities, variables = TemplateAbilities(), frozenset[str]()
    if isinstance(template, ChatTemplate):
        abilities, variables = find_abilities(template), template.variables
    special = {
        added.content: token
        for token, added in tokenizer.added_tokens_decoder.items()
        if added.special
    }

    def tokens(*texts: str) -> frozenset[int]:
        return frozenset(special[text] for text in texts if text in special)

    tool_marks = tokens("[ARGS]", "[CALL_ID]", *(mark for pair in form.marks for mark in pair))
    reasoning_marks = tokens() if reasoning is None else tokens(reasoning.begin, reasoning.end)
    return ChatDialect(form, reasoning, abilities, variables, tool_marks, reasoning_marks)
