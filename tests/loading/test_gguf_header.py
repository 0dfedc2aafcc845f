"""The header parser on right files, on lying ones, and on any bytes at all."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest

from jaxsgl.loading.errors import CheckpointError
from jaxsgl.loading.gguf_checkpoint import tensor_places
from jaxsgl.loading.gguf_config import gguf_model_config
from jaxsgl.loading.gguf_header import GgufHeader, parse_header
from jaxsgl.models.model_config import ModelConfig
from jaxsgl.tokenizer import TokenizerError, load_tokenizer
from tests.loading.gguf_bytes import (
    ARRAY,
    BOOL,
    STRING,
    UINT8,
    UINT32,
    array,
    entry,
    file_bytes,
    tensor_info,
    text,
    value_entry,
)
from tests.loading.mutations import mutated
from tests.loading.tiny_models import gguf_tensors, model_entries, model_file, tiny_model

HUGE = 2**63
ALIGNMENT_KEY = "general.alignment"
F32_DATA = bytes(64)


def test_reads_what_the_gguf_package_writes(tmp_path: Path) -> None:
    path = tmp_path / "written.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -5)
    writer.add_uint16("a.u16", 60000)
    writer.add_int16("a.i16", -30000)
    writer.add_uint32("a.u32", 2**32 - 1)
    writer.add_int32("a.i32", -(2**31))
    writer.add_uint64("a.u64", 2**64 - 1)
    writer.add_int64("a.i64", -(2**63))
    writer.add_float32("a.f32", 0.5)
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "naïve 🦊")
    writer.add_array("a.texts", ["x", "", "日本"])
    writer.add_array("a.ints", [1, -2, 3])
    writer.add_array("a.bools", [True, False])
    writer.add_custom_alignment(64)
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    writer.add_tensor("matrix", matrix)
    writer.add_tensor("half", np.ones(5, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    data = path.read_bytes()
    header = parse_header(data, "written.gguf")
    values = dict(header.metadata)
    assert values.pop("a.ints").tolist() == [1, -2, 3]
    assert values.pop("a.bools").tolist() == [True, False]
    assert values == {
        "general.architecture": "llama",
        "general.alignment": 64,
        "a.u8": 200,
        "a.i8": -5,
        "a.u16": 60000,
        "a.i16": -30000,
        "a.u32": 2**32 - 1,
        "a.i32": -(2**31),
        "a.u64": 2**64 - 1,
        "a.i64": -(2**63),
        "a.f32": 0.5,
        "a.f64": 0.1,
        "a.bool": True,
        "a.text": "naïve 🦊",
        "a.texts": ["x", "", "日本"],
    }
    stored = header.tensors["matrix"]
    assert stored.shape == (3, 4)
    assert data[stored.offset : stored.offset + stored.num_bytes] == matrix.tobytes()
    assert header.tensors["half"].kind is gguf.GGMLQuantizationType.F16


LIES = {
    "empty": (b"", "magic"),
    "another magic": (file_bytes(magic=b"GGML"), "magic"),
    "version 1": (file_bytes(version=1), "version"),
    "big-endian": (file_bytes(version=3 << 24), "version"),
    "2^63 tensors": (file_bytes(num_tensors=HUGE), "number of tensors"),
    "2^63 keys": (file_bytes(num_keys=HUGE), "number of keys"),
    "more keys than follow": (file_bytes([value_entry("a", 1)], num_keys=2), "key"),
    "key of 2^64 - 1 bytes": (file_bytes([struct.pack("<Q", 2**64 - 1) + bytes(9)]), "name"),
    "key without a name": (file_bytes([entry("", UINT32, bytes(4))]), "name"),
    "key not in UTF-8": (file_bytes([entry(b"\xff", UINT32, bytes(4))]), "UTF-8"),
    "key twice": (file_bytes([value_entry("a", 1)] * 2), "'a' is given twice"),
    "text of 2^64 - 1 bytes": (
        file_bytes([entry("a", STRING, struct.pack("<Q", 2**64 - 1))]),
        "'a' needs",
    ),
    "text not in UTF-8": (file_bytes([entry("a", STRING, text(b"\xff"))]), "'a' is not UTF-8"),
    "unknown value type": (file_bytes([entry("a", 13, bytes(8))]), "'a' has unknown value type 13"),
    "array of 2^63": (file_bytes([entry("a", ARRAY, array(UINT8, HUGE, b""))]), "'a' is"),
    "array of 2^63 texts": (file_bytes([entry("a", ARRAY, array(STRING, HUGE, b""))]), "'a' is"),
    "array cut short": (
        file_bytes([entry("a", ARRAY, array(STRING, 3, text("x") + struct.pack("<QQ", 99, 0)))]),
        "'a' has a string, number 1",
    ),
    "array of arrays": (
        file_bytes([entry("a", ARRAY, array(ARRAY, 1, array(UINT8, 0, b"")))]),
        "array of arrays",
    ),
    "array of unknown type": (file_bytes([entry("a", ARRAY, array(77, 1, bytes(8)))]), "77"),
    "boolean 2": (file_bytes([entry("a", BOOL, b"\x02")]), "boolean"),
    "alignment 0": (file_bytes([value_entry(ALIGNMENT_KEY, 0)]), ALIGNMENT_KEY),
    "alignment 3": (file_bytes([value_entry(ALIGNMENT_KEY, 3)]), ALIGNMENT_KEY),
    "alignment in words": (file_bytes([value_entry(ALIGNMENT_KEY, "32")]), ALIGNMENT_KEY),
    "tensor without dimensions": (file_bytes(infos=[tensor_info("t", ())]), "0 dimensions"),
    "tensor of 5 dimensions": (file_bytes(infos=[tensor_info("t", (1,) * 5)]), "5 dimensions"),
    "tensor without values": (file_bytes(infos=[tensor_info("t", (2, 0))]), "no values"),
    "unknown quantisation": (
        file_bytes(infos=[tensor_info("t", (32,), kind=4)], data=F32_DATA),
        "'t' has unknown quantisation type 4",
    ),
    "half a block": (
        file_bytes(infos=[tensor_info("t", (2, 16), kind=2)], data=F32_DATA),
        "'t' has rows of 16",
    ),
    "tensor twice": (
        file_bytes(infos=[tensor_info("t", (4,))] * 2, data=F32_DATA),
        "'t' is given twice",
    ),
    "offset not aligned": (
        file_bytes(infos=[tensor_info("t", (4,), offset=4)], data=F32_DATA),
        "'t' has offset 4",
    ),
    "data beyond the end": (
        file_bytes(infos=[tensor_info("t", (17,))], data=F32_DATA),
        "'t' ends at byte",
    ),
    "offset beyond the end": (
        file_bytes(infos=[tensor_info("t", (4,), offset=2**63)], data=F32_DATA),
        "'t' ends at byte",
    ),
    "2^252 values": (
        file_bytes(infos=[tensor_info("t", (HUGE,) * 4)], data=F32_DATA),
        "'t' ends at byte",
    ),
    "overlap": (
        file_bytes(
            infos=[tensor_info("t", (16,)), tensor_info("u", (4,), offset=32)], data=F32_DATA
        ),
        "'u' overlaps 't'",
    ),
}


@pytest.mark.parametrize("case", LIES)
def test_refuses_a_lying_header_in_one_line(case: str) -> None:
    data, fault = LIES[case]
    with pytest.raises(CheckpointError) as caught:
        parse_header(data, "lie.gguf")
    message = str(caught.value)
    assert message.startswith("lie.gguf: ")
    assert fault in message
    assert "\n" not in message


def test_every_cut_of_a_file_is_refused() -> None:
    data = file_bytes(
        [value_entry("a", ["x", "y"]), value_entry("b", 1.5)],
        [tensor_info("t", (16,))],
        F32_DATA,
    )
    parse_header(data, "whole.gguf")
    for length in range(len(data)):
        with pytest.raises(CheckpointError):
            parse_header(data[:length], "cut.gguf")


@pytest.mark.parametrize("kind", [UINT8, STRING])
def test_a_claim_allocates_nothing_before_it_is_checked(kind: int) -> None:
    claims = [
        entry("a", ARRAY, array(kind, 2**40, b"")),
        entry("a", STRING, struct.pack("<Q", 2**40)),
    ]
    for claim in claims:
        data = file_bytes([claim])
        tracemalloc.start()
        try:
            with pytest.raises(CheckpointError):
                parse_header(data, "claim.gguf")
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < 64 * 2**10


def small_model_file() -> bytes:
    """A file with everything that loading looks at, small enough to be mutated often."""
    model = tiny_model()
    tokens = ["<s>", "</s>", "<x>", "ab", *map(chr, range(ord("!"), ord("~")))]
    tokenizer = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 4] + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "{% for m in messages %}<s>{{ m.content }}{% endfor %}",
    }
    return model_file(model_entries(model.config) | tokenizer, gguf_tensors(model))


def load_from(data: bytes) -> None:
    """Everything that opening a file does, short of reading values."""
    header: GgufHeader = parse_header(data, "mutated.gguf")
    config: ModelConfig = gguf_model_config(header, Path("mutated.gguf"))
    tensor_places(header, config, "mutated.gguf")
    load_tokenizer(header.metadata)


def survive_mutations(num_cases: int, seed: int) -> int:
    """Load mutated files; anything but success or one line for a person escapes. Count refusals."""
    data = small_model_file()
    header_len = min(tensor.offset for tensor in parse_header(data, "").tensors.values())
    draw = np.random.default_rng(seed)
    num_refused = 0
    for _ in range(num_cases):
        try:
            load_from(mutated(data, draw, header_len))
        except (CheckpointError, TokenizerError) as error:
            assert "\n" not in str(error)
            num_refused += 1
    return num_refused


def test_mutated_headers_load_or_are_refused() -> None:
    load_from(small_model_file())
    assert survive_mutations(2000, seed=0) > 1000


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_mutated_headers() -> None:
    tracemalloc.start()
    try:
        assert survive_mutations(100_000, seed=1) > 30_000
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 64 * 2**20
