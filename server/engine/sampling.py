"""Chooses the next token from logits, with the parameters and the random stream of a request."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

_FIRST_CANDIDATES = 1024  # that are sorted before the whole vocabulary is
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
    def is_argmax(self) -> bool:
        """Return whether the next token is the arg-max of the unchanged logits."""
        return self.greedy and not self.changes_logits

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
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    def __call__(self, logits: Tensor, prompt: list[int], output: list[int]) -> int:
        """Return the next token for fp32 `logits` `[vocab]` after `prompt` and `output`.

        Raises `SamplingError` if the highest logit is not a finite number.
        """
        if self.params.changes_logits:
            logits = self._penalise(logits.clone(), prompt, output)
        if self.params.greedy:
            highest, token = logits.max(0)
            if not math.isfinite(highest):
                raise SamplingError
            return int(token)
        # The maximum is subtracted first, so that a small temperature does not overflow.
        scaled = (logits - logits.max()) / self.params.temperature
        values, tokens = self._candidates(scaled)
        probabilities = values.softmax(0).cumsum(0)
        draw = torch.rand(1, generator=self._generator).to(logits.device) * probabilities[-1]
        pick = int(torch.searchsorted(probabilities, draw, right=True))
        if pick == len(tokens):  # NaN, or the draw was rounded up to the whole sum
            if not math.isfinite(probabilities[-1]):
                raise SamplingError
            pick = int(torch.searchsorted(probabilities, probabilities[-1:]))
        return int(tokens[pick])

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

    def _candidates(self, scaled: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and ids, each `[candidates]`, that top-k, top-p and min-p leave.

        `scaled` is fp32 `[vocab]`. Values are descending, unless no filter applies.
        """
        params = self.params
        vocab = scaled.shape[0]
        limit = min(params.top_k or vocab, vocab)
        if limit == vocab and params.top_p >= 1.0 and params.min_p == 0.0:
            return scaled, torch.arange(vocab, device=scaled.device)
        first = min(limit, _FIRST_CANDIDATES) if params.top_p < 1.0 or params.min_p else limit
        values, tokens = scaled.topk(first)
        keep = self._candidate_count(values, scaled, limit)
        if keep == first < limit:  # candidates beyond the first ones may be left, too
            values, tokens = scaled.topk(limit)
            keep = self._candidate_count(values, scaled, limit)
        return values[:keep], tokens[:keep]

    def _candidate_count(self, values: Tensor, scaled: Tensor, limit: int) -> int:
        """Return how many of the descending `values` `[first candidates]` are left."""
        # Probabilities are normalised over the top k, as in transformers and vLLM.
        total = (values if limit < scaled.shape[0] and limit == len(values) else scaled).logsumexp(
            0
        )
        probabilities = (values - total).exp()
        keep = torch.ones_like(probabilities, dtype=torch.bool)
        if self.params.top_p < 1.0:
            keep &= probabilities.cumsum(0) - probabilities < self.params.top_p
        if self.params.min_p > 0.0:
            keep &= probabilities >= self.params.min_p * probabilities[0]
        return max(1, int(keep.sum()))
