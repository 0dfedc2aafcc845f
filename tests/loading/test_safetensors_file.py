"""The safetensors reader on right files, on lying headers, and on damaged ones."""

from __future__ import annotations

import json
import os
import struct
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save, save_file

from jaxsgl.loading.errors import CheckpointError
from jaxsgl.loading.safetensors_file import (
    check_weight,
    parse_header,
    read_safetensors_header,
    read_safetensors_tensor,
)
from jaxsgl.loading.tensor_data import NUM_STREAMS, PIECE_BYTES, STREAM_BYTES
from tests.loading.mutations import mutated


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_reads_what_the_safetensors_package_writes(tmp_path: Path, dtype: Any) -> None:
    draw = np.random.default_rng(0)
    values = {
        "matrix": draw.standard_normal((PIECE_BYTES // 512, 301)).astype(dtype),
        "vector": draw.standard_normal(7).astype(dtype),
        "scalar": np.array(1.5, dtype),
        "nothing": np.zeros((0, 4), dtype),
    }
    path = tmp_path / "model.safetensors"
    save_file(values, path, metadata={"format": "pt"})
    tensors = read_safetensors_header(path)
    assert tensors.keys() == values.keys()
    assert tensors["matrix"].num_bytes > PIECE_BYTES
    for name, expected in values.items():
        check_weight(tensors[name], "model")
        tensor = read_safetensors_tensor(path, tensors[name])
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, expected.astype(np.float32), err_msg=name)


STORED = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16]


@pytest.mark.parametrize("wanted", STORED[:2] + STORED[3:])
@pytest.mark.parametrize("stored", STORED)
def test_only_what_is_wanted_in_its_own_type_is_read_in_it(
    tmp_path: Path, stored: Any, wanted: Any
) -> None:
    """In several streams: the first and last values of each would show a wrong place."""
    num_values = NUM_STREAMS * STREAM_BYTES // np.dtype(stored).itemsize + 3
    values = np.random.default_rng(0).standard_normal(num_values, np.float32).astype(stored)
    path = tmp_path / "model.safetensors"
    save_file({"weight": values}, path)
    tensor = read_safetensors_header(path)["weight"]
    read = read_safetensors_tensor(path, tensor, np.dtype(wanted))
    assert read.dtype == (stored if stored == wanted else np.float32)
    np.testing.assert_array_equal(read, values.astype(read.dtype))


@pytest.mark.parametrize("wanted", [np.float32, ml_dtypes.bfloat16])
def test_a_large_tensor_that_became_shorter_is_refused_and_no_thread_left(
    tmp_path: Path, wanted: Any
) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": np.zeros(2 * STREAM_BYTES, ml_dtypes.bfloat16)}, path)
    tensor = read_safetensors_header(path)["weight"]
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: 'weight' is cut short"):
        read_safetensors_tensor(path, tensor, np.dtype(wanted))
    path.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: 'weight': No such file"):
        read_safetensors_tensor(path, tensor, np.dtype(wanted))
    assert not [each for each in threading.enumerate() if each.name.startswith("stream")]


def entry(dtype: Any = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def text(header: Any) -> bytes:
    return json.dumps(header).encode()


ONE = text({"t": entry()})
LIES: dict[str, tuple[bytes, int, str]] = {
    "not JSON": (b"{]", 16, "is not JSON"),
    "not UTF-8": (b'{"\xff": 1}', 16, "is not JSON"),
    "an array": (b"[]", 0, "is not a JSON object"),
    "nested without end": (b'{"a":' + b"[" * 100_000, 16, "is not JSON"),
    "NaN": (b'{"t": NaN}', 16, "NaN is not a number"),
    "tensor twice": (ONE[:-1] + b"," + ONE[1:], 16, "'t' is given twice"),
    "no description": (text({"t": 1}), 16, "'t' is not described"),
    "no dtype": (text({"t": {"shape": [4], "data_offsets": [0, 16]}}), 16, "'t' is not described"),
    "unknown dtype": (text({"t": entry("F4")}), 16, "'t' has unknown dtype 'F4'"),
    "dtype no text": (text({"t": entry([])}), 16, "'t' has unknown dtype []"),
    "negative shape": (text({"t": entry(shape=[-4])}), 16, "'t' has shape [-4]"),
    "shape of booleans": (text({"t": entry(shape=[True])}), 16, "'t' has shape [True]"),
    "nine dimensions": (text({"t": entry(shape=[1] * 9)}), 16, "'t' has shape"),
    "three offsets": (text({"t": entry(offsets=[0, 8, 16])}), 16, "'t' has data_offsets"),
    "offsets backwards": (text({"t": entry(offsets=[16, 0])}), 16, "'t' has data_offsets"),
    "shape larger than data": (text({"t": entry(shape=[2**40])}), 16, "'t' has data_offsets"),
    "data beyond the end": (
        text({"t": entry(shape=[2**60], offsets=[0, 2**62])}),
        16,
        "'t' ends at byte",
    ),
    "overlap": (
        text({"t": entry(), "u": entry(offsets=[8, 24])}),
        24,
        "'u' overlaps another tensor",
    ),
    "gap": (text({"t": entry(offsets=[16, 32])}), 32, "'t' leaves a gap"),
    "bytes left over": (ONE, 20, "4 bytes after its last tensor"),
    "truncated": (ONE, 12, "'t' ends at byte"),
}


@pytest.mark.parametrize("case", LIES)
def test_refuses_a_lying_header_in_one_line(case: str) -> None:
    header, data_bytes, fault = LIES[case]
    with pytest.raises(CheckpointError) as caught:
        parse_header(header, 8 + len(header) + data_bytes, "lie.safetensors")
    message = str(caught.value)
    assert message.startswith("lie.safetensors: ")
    assert fault in message
    assert "\n" not in message


def test_the_true_header_of_those_lies_is_accepted() -> None:
    assert parse_header(ONE, 8 + len(ONE) + 16, "true.safetensors")["t"].offset == 8 + len(ONE)


@pytest.mark.parametrize("header_bytes", [0, 1, 2**60, 2**64 - 1])
def test_a_claimed_header_length_is_checked_before_reading(
    tmp_path: Path, header_bytes: int
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", header_bytes) + ONE + bytes(16))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=rf"header of {header_bytes} bytes"):
            read_safetensors_header(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2**20


@pytest.mark.parametrize("content", [b"", b"\x10"])
def test_a_file_too_short_for_a_length(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: header"):
        read_safetensors_header(path)


def test_integers_are_no_weights() -> None:
    header = text({"t": entry("I32")})
    tensor = parse_header(header, 8 + len(header) + 16, "x")["t"]
    with pytest.raises(CheckpointError, match="x: 't' has type I32"):
        check_weight(tensor, "x")


def survive_mutations(num_cases: int, seed: int) -> int:
    """Parse mutated headers; anything but success or one line for a person escapes."""
    names = [f"model.layers.{index}.mlp.up_proj.weight" for index in range(4)]
    data = save({name: np.ones((3, 4), np.float32) for name in names}, {"format": "pt"})
    (header_bytes,) = struct.unpack_from("<Q", data)
    draw = np.random.default_rng(seed)
    num_refused = 0
    for _ in range(num_cases):
        header = mutated(data[8:], draw, header_bytes)[:header_bytes]
        try:
            tensors = parse_header(header, len(data), "mutated")
        except CheckpointError as error:
            assert "\n" not in str(error)
            num_refused += 1
        else:
            assert all(t.offset + t.num_bytes <= len(data) for t in tensors.values())
    return num_refused


def test_mutated_headers_load_or_are_refused() -> None:
    assert survive_mutations(2000, seed=0) > 1000


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_mutated_headers() -> None:
    assert survive_mutations(100_000, seed=1) > 50_000
