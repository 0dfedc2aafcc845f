"""Random weights for a config.json."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxsgl.loading.checkpoint import Checkpoint, open_checkpoint
from jaxsgl.loading.dummy_checkpoint import NUM_DRAWN, WEIGHT_STD
from jaxsgl.loading.model_tensors import expected_shapes
from tests.loading.tiny_models import tiny_model

EMBEDDING = "model.embed_tokens.weight"


def dummy(folder: Path, seed: int = 0, **changes: int) -> Checkpoint:
    (folder / "config.json").write_text(json.dumps(tiny_model().raw_config | changes))
    return open_checkpoint(folder, "dummy", seed=seed)


def test_has_every_tensor_in_its_shape(tmp_path: Path) -> None:
    checkpoint = dummy(tmp_path)
    shapes = {name: checkpoint.tensor(name).shape for name in checkpoint.names()}
    assert shapes == expected_shapes(tiny_model().config)
    assert checkpoint.tokenizer_source is None


def test_weights_depend_on_seed_and_name_alone(tmp_path: Path) -> None:
    first, second, other = dummy(tmp_path), dummy(tmp_path), dummy(tmp_path, seed=1)
    for name in reversed(second.names()):
        np.testing.assert_array_equal(first.tensor(name), second.tensor(name))
    assert (first.tensor(EMBEDDING) != other.tensor(EMBEDDING)).all()
    queries = [f"model.layers.{index}.self_attn.q_proj.weight" for index in (0, 1)]
    assert (first.tensor(queries[0]) != first.tensor(queries[1])).all()


def test_large_tensors_are_normal_and_have_no_equal_rows(tmp_path: Path) -> None:
    embedding = dummy(tmp_path, vocab_size=40_000).tensor(EMBEDDING)
    assert embedding.size > 2 * NUM_DRAWN
    assert embedding.std() == pytest.approx(WEIGHT_STD, rel=0.01)
    assert abs(embedding.mean()) < WEIGHT_STD / 100
    assert len(np.unique(embedding[:, :4], axis=0)) == len(embedding)


MADE_ON_A_MESH = """
import sys
from pathlib import Path
import jax
import numpy as np
from jaxsgl.loading.checkpoint import open_checkpoint
from jaxsgl.models.dummy_tensors import DummyTensors
from jaxsgl.runner.mesh import make_mesh

checkpoint = open_checkpoint(Path(sys.argv[1]), "dummy")
for num_devices in (1, 4):
    tensors = DummyTensors(checkpoint, make_mesh({"tp": num_devices}))
    for name in checkpoint.names():
        made, own = tensors.tensor(name), checkpoint.tensor(name)
        np.testing.assert_array_equal(made, own)
        spread = num_devices > 1 and len(own) % num_devices == 0
        part = made.sharding.shard_shape(made.shape)
        assert part[0] == len(own) // (num_devices if spread else 1), name
"""


def test_made_on_a_mesh_they_are_the_same_and_each_device_makes_its_part(tmp_path: Path) -> None:
    """Of a vocabulary that four devices cannot share out evenly, too, and of so many values that
    they are repeated."""
    for vocab_size in (5_002, 8_000):
        dummy(tmp_path, vocab_size=vocab_size)
        subprocess.run(
            [sys.executable, "-c", MADE_ON_A_MESH, tmp_path],
            env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
            check=True,
            timeout=240,
        )
