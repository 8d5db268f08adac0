"""Log-probabilities of tokens as chats have them, and responses, too."""

from collections.abc import Sequence

from server.api.openai.token_text import MIN_LOGPROB, TokenText, id_name, shown
from server.engine.sequence import TokenLogprob


def logprob_entries(
    texts: TokenText, tokens: Sequence[TokenLogprob], as_ids: bool = False
) -> list[dict[str, object]]:
    """Return an object for each token, with its bytes and the likeliest tokens in its place.

    With `as_ids` tokens are named `token_id:N`.
    """

    def entry(token: int, logprob: float) -> dict[str, object]:
        data = texts.data(token)
        name = id_name(token) if as_ids else shown(data)
        return {"token": name, "logprob": max(logprob, MIN_LOGPROB), "bytes": list(data)}

    return [
        {
            **entry(item.token, item.logprob),
            "top_logprobs": [entry(token, logprob) for token, logprob in _top(item)],
        }
        for item in tokens
    ]


def _top(item: TokenLogprob) -> list[tuple[int, float]]:
    """Return the most likely tokens, which need not hold the chosen one, the likeliest first."""
    by_logprob = sorted(item.top, key=lambda pair: -pair[1])
    return by_logprob[: item.requested]
