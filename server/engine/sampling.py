"""Chooses the next token from logits, with the parameters and the seed of a request."""

import secrets
from dataclasses import dataclass, field

import torch
from torch import Tensor

from server.engine.draw import Draw, choose, key_of

_GREEDY_BELOW = 1e-5  # as in vLLM: lower temperatures differ from greedy by rounding only
_PENALTY_RANGE = (1e-30, 1e30)  # that keeps logits finite in fp32


class SamplingError(ArithmeticError):
    """The model gave no finite logit to choose the next token by. The message is for the client."""

    def __init__(self) -> None:
        super().__init__("the model gave no finite number for the next token")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request samples. `top_k` 0, `top_p` 1 and `min_p` 0 switch these filters off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None

    @property
    def greedy(self) -> bool:
        """Return whether the likeliest token is always taken."""
        return self.temperature < _GREEDY_BELOW

    @property
    def changes_logits(self) -> bool:
        """Return whether penalties or biases apply."""
        return bool(
            self.repetition_penalty != 1.0
            or self.presence_penalty
            or self.frequency_penalty
            or self.logit_bias
        )


class TokenSampler:
    """Samples for one request. The same seed and the same logits give the same tokens."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self._seed = secrets.randbits(64) if params.seed is None else params.seed

    def draw(self, position: int) -> Draw:
        """Return how the token at a position of the answer is drawn."""
        params = self.params
        if params.greedy:
            return Draw()
        return Draw(
            params.temperature,
            params.top_k,
            params.top_p,
            params.min_p,
            key_of(self._seed, position),
        )

    def __call__(self, logits: Tensor, prompt: list[int], output: list[int]) -> int:
        """Return the next token for fp32 `logits` `[vocab]` after `prompt` and `output`.

        Raises `SamplingError` if the highest logit is not a finite number.
        """
        if self.params.changes_logits:
            logits = self._penalise(logits.clone(), prompt, output)
        token = choose(logits, self.draw(len(output)))
        if token < 0:
            raise SamplingError
        return token

    def _penalise(self, logits: Tensor, prompt: list[int], output: list[int]) -> Tensor:
        """Apply penalties and biases to `logits` `[vocab]`, in place."""
        params = self.params
        if params.repetition_penalty != 1.0:
            used = torch.tensor(sorted(set(prompt) | set(output)), device=logits.device)
            picked = logits[used]
            penalty = min(max(params.repetition_penalty, _PENALTY_RANGE[0]), _PENALTY_RANGE[1])
            logits[used] = torch.where(picked > 0, picked / penalty, picked * penalty)
        if (params.presence_penalty or params.frequency_penalty) and output:
            tokens, counts = torch.tensor(output, device=logits.device).unique(return_counts=True)
            logits[tokens] -= params.presence_penalty + params.frequency_penalty * counts
        for token, bias in params.logit_bias.items():
            logits[token] += bias
        return logits
