"""Splits one answer: reasoning first, then content and tool calls."""

from server.api.tools.pieces import ContentText, Piece
from server.api.tools.reasoning_parser import ReasoningParser
from server.api.tools.tool_parser import ToolParser


class AnswerSplitter:
    """Splits the text of an answer, as it comes, into its pieces.

    Without `reasoning` or `tools` there is no such piece, and the text is content.
    """

    def __init__(self, reasoning: ReasoningParser | None, tools: ToolParser | None) -> None:
        self._reasoning = reasoning
        self._tools = tools

    @property
    def calls(self) -> int:
        """The number of whole calls so far."""
        return 0 if self._tools is None else self._tools.calls

    def push(self, text: str) -> list[Piece]:
        """Return what a further text of the answer adds."""
        if self._reasoning is not None:
            return self._with_calls(self._reasoning.push(text))
        return self._with_calls([ContentText(text)] if text else [])

    def finish(self) -> list[Piece]:
        """Return what is left when the answer ends."""
        pieces = [] if self._reasoning is None else self._with_calls(self._reasoning.finish())
        return pieces if self._tools is None else pieces + self._tools.finish()

    def _with_calls(self, pieces: list[Piece]) -> list[Piece]:
        """Return pieces whose content is split further."""
        if self._tools is None:
            return pieces
        split: list[Piece] = []
        for piece in pieces:
            split += self._tools.push(piece.text) if isinstance(piece, ContentText) else [piece]
        return split
