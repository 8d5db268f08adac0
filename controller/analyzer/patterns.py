"""The default backend: regular expressions, without models or data files. Takes microseconds."""

import re

from controller.analyzer.features import PromptFeatures, first_and_last_words

_LANGUAGE_WORDS = 60
"""Words by which the language is recognised."""
_MAX_WORDS = 200
"""Words that are analysed of a long prompt's beginning, and as many of its end."""
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_SENTENCE = re.compile(r"[.!?]+(?=\s|$)")
_CODE = re.compile(
    r"```|\b(?:def \w+\(|class \w+[:(]|import \w+|return\b.{0,200}[;)])"
    r"|\bSELECT\b.{1,200}\bFROM\b|#include"
    r"|</?\w+>|[{};]\s*$|=>|==|!=",
    re.MULTILINE,
)
# Each match of the pattern contains one of these. Most prompts have none, which is fast to check.
_CODE_SIGNS = (
    "```", "def ", "class ", "import ", "return", "SELECT", "#include", "<", "{", "}", ";", "=>",
    "==", "!=",
)  # fmt: skip
# These are for text in lower case, which is faster than patterns that ignore the case.
_STEPS = re.compile(
    r"\b(?:step[- ]by[- ]step|first(?:ly)?|second(?:ly)?|then|next|finally|after that)\b"
    r"|^[^\S\n]*(?:\d+[.)]|[-*])\s",
    re.MULTILINE,
)
_CUES = """why how prove derive explain compare analyse analyze evaluate calculate solve justify
because therefore if unless assume"""
_REASONING = frozenset(_CUES.split())
_INSTRUCTION = re.compile(
    r"(?:^|[.!?:]\s+|\b(?:and|please)\s+)(?:write|list|give|explain|describe|summari[sz]e"
    r"|translate|compare|create|find|classify|rewrite|generate|identify|name|tell|make|provide"
    r"|calculate|suggest|convert|answer|use|show|extract|do not|don't|include|avoid)\b"
)


# The most frequent short words of each language.
_COMMON = {
    "en": "the and of to in is that for it with as are this you what how a an be on",
    "de": "der die und das ist nicht ein eine mit für auf den von zu wie was ich es im sich",
    "fr": "le la les et est une des pour que dans pas qui du en sur avec ce il au comment",
    "es": "el los las es una para que por con en del un se no como qué su al lo más",
    "it": "il di che è una per con non sono della del un come cosa si le gli da in al",
    "pt": "o os as que é uma para com não em do da um por como se mais no na ao",
    "nl": "de het een en van is dat niet op te voor met zijn wat hoe ik je aan er ook",
}
_STOP = {language: frozenset(words.split()) for language, words in _COMMON.items()}


class PatternBackend:
    """Counts with regular expressions, in the first and the last words of a very long prompt."""

    name = "patterns"

    def analyze(self, text: str) -> PromptFeatures:
        """Return the features, in well under a millisecond. Never None."""
        count = len(text.split()) if len(text) > 12 * _MAX_WORDS else 0
        text = first_and_last_words(text, _MAX_WORDS, _MAX_WORDS)
        lowered = text.lower()
        words = _WORD.findall(lowered)
        return PromptFeatures(
            words=max(count, len(words)),
            sentences=len(_SENTENCE.findall(text)),
            questions=text.count("?"),
            numbers=len(_NUMBER.findall(text)),
            code_marks=_code_marks(text),
            step_cues=len(_STEPS.findall(lowered)),
            reasoning_cues=sum(map(_REASONING.__contains__, words)),
            instructions=len(_INSTRUCTION.findall(lowered)),
            distinct_ratio=len(set(words)) / len(words) if words else 0.0,
            mean_word=sum(map(len, words)) / len(words) if words else 0.0,
            language=_language(words[:_LANGUAGE_WORDS]),
        )


def _code_marks(text: str) -> int:
    return len(_CODE.findall(text)) if any(sign in text for sign in _CODE_SIGNS) else 0


def _language(words: list[str]) -> str:
    """Return the language with the most frequent words; "" for short, other or mixed texts."""
    if len(words) < 4:
        return ""
    shares = {name: sum(map(common.__contains__, words)) for name, common in _STOP.items()}
    first, second = sorted(shares.values(), reverse=True)[:2]
    if first < max(2, 0.12 * len(words)) or first == second:
        return ""
    return max(shares, key=shares.__getitem__)
