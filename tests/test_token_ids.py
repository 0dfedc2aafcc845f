import numpy as np
import pytest

from jaxsgl.token_ids import token_array


def test_ids_as_an_array():
    ids = token_array([0, 7, 128_255, 2**31 - 1])
    assert ids.dtype == np.int32
    assert ids.tolist() == [0, 7, 128_255, 2**31 - 1]
    assert token_array([]).shape == (0,)


@pytest.mark.parametrize("number", [-1, 2**32, -(2**70)])
def test_what_no_id_can_be_is_refused(number):
    with pytest.raises(OverflowError):
        token_array([3, number])
