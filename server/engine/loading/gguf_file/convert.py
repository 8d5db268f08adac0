"""Write a GGUF model as a Hugging Face folder."""

import json
import logging
from pathlib import Path

from transformers import GenerationConfig

from server.engine.loading.gguf_file.config import config_of, end_token_ids
from server.engine.loading.gguf_file.parts import open_gguf
from server.engine.loading.gguf_file.safetensors_writer import write_safetensors
from server.engine.loading.gguf_file.tensors import quantised_types, tensor_names, values
from server.engine.loading.gguf_file.tokenizer import named_ends, tokenizer_of
from server.engine.loading.model_files import QUANTISED

log = logging.getLogger(__name__)


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write a GGUF decoder as an fp32 Hugging Face folder; every value is dequantised exactly.

    Everything is checked before the first byte is written. Raises `UnsupportedModelError` with the
    name of a tensor or key that is missing, damaged or not supported, and `OSError`.
    """
    log.info("converting %s, once", gguf.name)
    model = open_gguf(gguf)
    config = config_of(model)
    names = tensor_names(model, config)
    tokenizer = tokenizer_of(model)
    config.dtype = "float32"
    folder.mkdir(parents=True)
    shapes = {
        name: [int(n) for n in reversed(model.tensors[stored].shape.tolist())]
        for name, stored in names.items()
    }
    write_safetensors(folder / "model.safetensors", shapes, values(model, config, names))
    types = quantised_types(model, names)
    (folder / QUANTISED).write_text(json.dumps(types, indent=1) + "\n")
    config.save_pretrained(folder)
    generation = GenerationConfig.from_model_config(config)
    ends = sorted({*end_token_ids(model), *named_ends(tokenizer)})
    generation.eos_token_id = ends[0] if len(ends) == 1 else ends or None
    generation.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
