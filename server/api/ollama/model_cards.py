"""What Ollama's API tells of models: the served one, and each variant under a name of its own."""

from datetime import datetime
from typing import Any

from pruners.variant import BASE
from server.api.chat.start import ChatParts
from server.api.errors import misfit
from server.api.ollama.writer import timestamp
from server.api.prompt.chat_template import ChatTemplate
from server.api.server_info import chat_template
from server.api.service import variant_in_model_name

_FAMILY = "trimtab"


class ModelCards:
    """Describes models; `started` is when the server was."""

    def __init__(self, parts: ChatParts, started: datetime) -> None:
        self._service = parts.service
        chats = isinstance(parts.prompts.template, ChatTemplate)
        thinks = parts.dialect.reasoning is not None
        self._abilities = [*(["tools"] if chats else []), *(["thinking"] if thinks else [])]
        self._modified = timestamp(started)

    def listed(self) -> list[dict[str, Any]]:
        """Return the cards of all models, as `/api/tags` has them."""
        model = self._service.model
        served = self._service.served_name
        names = [served, *(f"{served}@{variant}" for variant in model.variants)]
        return [self._card(name) for name in names]

    def running(self) -> list[dict[str, Any]]:
        """Return the card of the one loaded model, as `/api/ps` has it."""
        card = self._card(self._service.served_name)
        on_gpu = self._service.model.weights.device.type == "cuda"
        size_vram = card["size"] if on_gpu else 0
        context = self._service.builder.context_tokens
        return [{**card, "size_vram": size_vram, "context_length": context}]

    def shown(self, name: str | None) -> dict[str, Any]:
        """Return all that is told of a model. Raise `ApiError` 404 for another one."""
        if name is None:
            raise misfit("model: which one?", "model")
        shape = self._service.model.weights.shape
        template = chat_template(self._service)
        return {
            "modelfile": "",
            "parameters": "",
            "template": template or "",
            "details": self._details(name),
            "model_info": {
                "general.architecture": _FAMILY,
                "general.parameter_count": self._parameters(name),
                f"{_FAMILY}.context_length": self._service.builder.context_tokens,
                f"{_FAMILY}.embedding_length": shape.hidden,
                f"{_FAMILY}.block_count": shape.layers,
                f"{_FAMILY}.feed_forward_length": shape.ffn,
                f"{_FAMILY}.attention.head_count": shape.heads,
                f"{_FAMILY}.attention.head_count_kv": shape.kv_groups,
                f"{_FAMILY}.vocab_size": shape.vocab,
            },
            "capabilities": ["completion", "embedding", *self._abilities],
            "modified_at": self._modified,
        }

    def _card(self, name: str) -> dict[str, Any]:
        model = self._service.model
        return {
            "name": name,
            "model": name,
            "modified_at": self._modified,
            "size": sum(tensor.nbytes for tensor in model.weights.tensors()),
            "digest": model.fingerprint,
            "details": self._details(name),
        }

    def _details(self, name: str) -> dict[str, Any]:
        return {
            "parent_model": "",
            "format": "",
            "family": _FAMILY,
            "families": [_FAMILY],
            "parameter_size": f"{self._parameters(name) / 1e6:.1f}M",
            "quantization_level": self._service.model.weights.precision,
        }

    def _parameters(self, name: str) -> int:
        """Return the number of parameters that a model reads for a token. Raise `ApiError` 404."""
        model = self._service.model
        variant = variant_in_model_name(self._service, name) or BASE
        return model.variants[variant].parameters(model.weights.shape)
