"""What a client asks of the form of an answer, before anything is made of it."""

from dataclasses import dataclass
from typing import Literal

ConstraintKind = Literal["json_object", "json_schema", "regex", "choice", "grammar"]
"""The kinds of constraints, as vLLM names them."""


@dataclass(frozen=True, slots=True)
class OutputConstraint:
    """The form that an answer must have.

    `source` is, by kind: a JSON Schema as JSON; a regular expression; a JSON list of the texts to
    choose from; a grammar in Lark's or GBNF's notation; "" for any JSON object. `blanks` allows
    spaces and line breaks within JSON. `param` names the field of the request, for error messages.
    """

    kind: ConstraintKind
    source: str = ""
    blanks: bool = True
    param: str = "response_format"
