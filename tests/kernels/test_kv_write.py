from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.kv_write import cases, reference
from pallas_kernels.kv_write.api import kv_write
from tests.kernels.op_suite import KvWriteSuite, OnGpu


class TestXla(KvWriteSuite):
    backend = "xla"


@pytest.mark.gpu
class TestXlaOnGpu(OnGpu, KvWriteSuite):
    backend = "xla"


def test_the_reference_by_hand() -> None:
    k_pages, v_pages = np.zeros((2, 2, 1, 1)), np.ones((2, 2, 1, 1))
    k, v = np.full((2, 1, 1), 5.0), np.full((2, 1, 1), 7.0)
    new_k, new_v = reference.kv_write(
        k_pages, v_pages, k, v, np.array([1, 2], np.int32), np.array([0, 0], np.int32)
    )
    assert new_k.ravel().tolist() == [0, 0, 5, 0]
    assert new_v.ravel().tolist() == [1, 1, 7, 1]
    assert not k_pages.any()


def test_bad_inputs_are_named() -> None:
    k_pages, v_pages, k, v, page, offset = map(jnp.asarray, cases.make_inputs(cases.CASES[1]))
    with pytest.raises(ValueError, match="v_pages"):
        kv_write(k_pages, v_pages[1:], k, v, page, offset)
    with pytest.raises(ValueError, match=r"k must be \(16, 3, 64\)"):
        kv_write(k_pages, v_pages, k[:5], v, page, offset)
    with pytest.raises(ValueError, match="offset must be int32"):
        kv_write(k_pages, v_pages, k, v, page, offset.astype(jnp.float32))
    with pytest.raises(ValueError, match="unknown backend 'abacus'; present: xla"):
        kv_write(k_pages, v_pages, k, v, page, offset, backend="abacus")
