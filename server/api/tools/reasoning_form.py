"""How families of models mark the reasoning before their answer."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningForm:
    """Reasoning stands between `begin` and `end`, at the beginning of an answer.

    The text behind it may stand between the `frame`'s two marks.
    """

    begin: str
    end: str
    frame: tuple[str, str] | None = None


_FORMS = (
    ReasoningForm("<think>", "</think>", ("<response>", "</response>")),
    ReasoningForm("<think>", "</think>"),
    ReasoningForm("[THINK]", "[/THINK]"),
    ReasoningForm("Here is my thought process:", "Here is my response:"),
)


def reasoning_of_template(template: str | None) -> ReasoningForm | None:
    """Return how the model with this chat template marks reasoning; None if it has none."""
    text = template or ""
    for form in _FORMS:
        marks = (form.begin, *(form.frame or ()))
        if all(mark in text for mark in marks):
            return form
    return None
