"""`prompt_logprobs`: the log-probabilities of a prompt's tokens, as vLLM writes them."""

from collections.abc import Sequence

from server.api.openai.token_text import MIN_LOGPROB, TokenText
from server.engine.sequence import TokenLogprob


def prompt_scores(
    texts: TokenText, scored: Sequence[TokenLogprob]
) -> list[dict[str, dict[str, object]] | None]:
    """Return an entry for each token of a prompt; the first has none, as nothing stands before it.

    An entry maps the ids of the token and of the most likely ones to `logprob`, `rank` (1 for the
    most likely) and `decoded_token`.
    """
    return [None, *(_entry(texts, one) for one in scored)]


def _entry(texts: TokenText, scored: TokenLogprob) -> dict[str, dict[str, object]]:
    likeliest = sorted(scored.top, key=lambda pair: -pair[1])
    ranks = {token: rank for rank, (token, _) in enumerate(likeliest, 1)}
    ranks[scored.token] = scored.rank
    return {
        str(token): {
            "logprob": max(logprob, MIN_LOGPROB),
            "rank": ranks[token],
            "decoded_token": texts.shown(token),
        }
        for token, logprob in scored.top
    }
