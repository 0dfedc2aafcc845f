"""The default model's tokenizer, loaded once for all tests."""

from __future__ import annotations

import functools

from jaxsgl.loading.default_model import default_model_path
from jaxsgl.loading.gguf_file import read_gguf_header
from jaxsgl.tokenizer import Tokenizer, load_tokenizer


@functools.cache
def smollm2() -> Tokenizer:
    return load_tokenizer(read_gguf_header(default_model_path()).metadata)
