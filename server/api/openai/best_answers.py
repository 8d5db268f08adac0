"""`best_of`: of several answers to a prompt, those that the model finds most likely."""

from collections.abc import Sequence

from server.api.responses import GeneratedAnswer


def best_answers(
    answers: Sequence[GeneratedAnswer], written: int, wanted: int
) -> list[GeneratedAnswer]:
    """Return the `wanted` best of each prompt's `written` answers, the best first.

    The best has the highest mean log-probability per token.
    """
    chosen: list[GeneratedAnswer] = []
    for first in range(0, len(answers), written):
        ranked = sorted(answers[first : first + written], key=_mean_logprob, reverse=True)
        chosen += ranked[:wanted]
    return chosen


def _mean_logprob(answer: GeneratedAnswer) -> float:
    scores = [token.logprob for token in answer.logprobs]
    return sum(scores) / len(scores) if scores else 0.0
