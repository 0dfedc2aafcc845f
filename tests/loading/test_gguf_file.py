"""Values of tensors of every type, against the `gguf` package's own reading of whole tensors."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest

from jaxsgl.loading.errors import CheckpointError
from jaxsgl.loading.gguf_file import NOT_WEIGHTS, check_weight, read_gguf_header, read_gguf_tensor
from jaxsgl.loading.tensor_data import PIECE_BYTES
from tests.loading.gguf_bytes import Packed, model_file

WEIGHT_KINDS = sorted(set(gguf.GGMLQuantizationType) - NOT_WEIGHTS, key=lambda kind: kind.name)


def packed(kind: gguf.GGMLQuantizationType, num_rows: int, row_blocks: int) -> Packed:
    """Random blocks. The bits left out make every half or full float in them finite."""
    block_len, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    draw = np.random.default_rng(int(kind))
    raw = draw.integers(256, size=num_rows * row_blocks * block_bytes, dtype=np.uint8) & 0x7B
    return Packed(raw, (num_rows, row_blocks * block_len), kind)


def write(path: Path, tensor: Packed) -> Path:
    path.write_bytes(model_file({}, {"before": np.ones(3, np.float32), "weight": tensor}))
    return path


def read(path: Path) -> np.ndarray:
    return read_gguf_tensor(path, read_gguf_header(path).tensors["weight"])


def reference(tensor: Packed) -> np.ndarray:
    rows = tensor.raw.reshape(tensor.shape[0], -1)
    return gguf.dequantize(rows, tensor.kind)


@pytest.mark.parametrize("kind", WEIGHT_KINDS, ids=lambda kind: kind.name)
def test_dequantises_every_type(tmp_path: Path, kind: gguf.GGMLQuantizationType) -> None:
    tensor = packed(kind, num_rows=5, row_blocks=3)
    expected = reference(tensor)
    assert len(np.unique(expected)) > 5
    values = read(write(tmp_path / "model.gguf", tensor))
    assert values.dtype == np.float32
    assert values.shape == tensor.shape
    np.testing.assert_array_equal(values, expected)


def test_types_are_weights_or_not_as_the_gguf_package_has_it() -> None:
    for kind in gguf.GGMLQuantizationType:
        tensor = packed(kind, 1, 1)
        if kind in NOT_WEIGHTS:
            with pytest.raises(NotImplementedError):
                reference(tensor)
        else:
            reference(tensor)


def test_a_tensor_longer_than_a_piece(tmp_path: Path) -> None:
    tensor = packed(gguf.GGMLQuantizationType.Q4_1, num_rows=3, row_blocks=PIECE_BYTES // 45)
    assert len(tensor.raw) > PIECE_BYTES
    values = read(write(tmp_path / "model.gguf", tensor))
    np.testing.assert_array_equal(values, reference(tensor))


def test_reading_needs_little_memory_beyond_the_tensor(tmp_path: Path) -> None:
    tensor = packed(gguf.GGMLQuantizationType.Q4_1, num_rows=48, row_blocks=PIECE_BYTES // 45)
    path = write(tmp_path / "model.gguf", tensor)
    tracemalloc.start()
    try:
        values = read(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Decoding takes several times the floats that it makes: of a piece, but never of the whole.
    assert peak_bytes < 1.5 * values.nbytes


def test_integers_are_no_weights(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", packed(gguf.GGMLQuantizationType.I32, 2, 4))
    with pytest.raises(CheckpointError, match=r"'weight' has type I32"):
        check_weight(read_gguf_header(path).tensors["weight"], str(path))


def test_a_file_that_shrinks_after_its_header_was_read(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", packed(gguf.GGMLQuantizationType.Q8_0, 4, 4))
    tensor = read_gguf_header(path).tensors["weight"]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=r"model\.gguf: 'weight' is cut short"):
        read_gguf_tensor(path, tensor)


@pytest.mark.parametrize("problem", ["missing", "folder", "empty"])
def test_what_is_no_file(tmp_path: Path, problem: str) -> None:
    path = tmp_path / "model.gguf"
    if problem == "folder":
        path.mkdir()
    elif problem == "empty":
        path.touch()
    with pytest.raises(CheckpointError, match=r"model\.gguf: (cannot be read: \w+|is empty)"):
        read_gguf_header(path)
