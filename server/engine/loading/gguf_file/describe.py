"""Write what a GGUF model says of itself as the small files of a Hugging Face folder."""

from pathlib import Path

from transformers import GenerationConfig

from server.engine.loading.gguf_file.config import config_of, end_token_ids, sampling_fields
from server.engine.loading.gguf_file.parts import GgufModel
from server.engine.loading.gguf_file.tensors import tensor_names
from server.engine.loading.gguf_file.tokenizer import named_ends, tokenizer_of


def describe_gguf(model: GgufModel, folder: Path) -> None:
    """Write configuration, tokenizer and generation configuration of a decoder into a new folder.

    Everything is checked before the first byte is written. Raises `UnsupportedModelError` with the
    name of a tensor or key that is missing, damaged or not supported, and `OSError`.
    """
    config = config_of(model)
    tensor_names(model, config)
    tokenizer = tokenizer_of(model)
    config.dtype = "float32"
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    generation = GenerationConfig.from_model_config(config)
    generation.update(**sampling_fields(model))
    ends = sorted({*end_token_ids(model), *named_ends(tokenizer)})
    generation.eos_token_id = ends[0] if len(ends) == 1 else ends or None
    generation.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
