import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsgl.runner.compile_guard import CompileGuard, RecompileForbidden


@pytest.fixture
def guard():
    guard = CompileGuard()
    yield guard
    guard.close()


def test_only_what_is_compiled_while_armed_counts(guard):
    double = jax.jit(lambda x: 2 * x)
    three, four = (jax.device_put(np.ones(n, np.float32)) for n in (3, 4))
    double(three)
    assert guard.recompiles == 0
    guard.arm()
    double(three)
    assert guard.recompiles == 0
    double(four)
    assert guard.recompiles == 1
    double(four)
    assert guard.recompiles == 1


def test_a_program_compiled_ahead_of_time_is_found_by_the_call(guard):
    triple = jax.jit(lambda x: 3 * x)
    five = jax.device_put(np.ones(5, np.float32))
    triple.lower(five).compile()
    guard.arm()
    triple(five)
    assert guard.recompiles == 0


def test_a_program_read_from_the_persistent_cache_counts(guard, tmp_path):
    """It would hold up a step almost as long."""
    changes = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in changes}
    try:
        for name, value in changes.items():
            jax.config.update(name, value)
        seven = jax.device_put(np.ones(7, np.float32))
        jax.jit(jnp.cbrt)(seven)
        jax.clear_caches()
        guard.arm()
        jax.jit(jnp.cbrt)(seven)
        assert guard.recompiles == 1
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_a_closed_guard_counts_no_more(guard):
    guard.arm()
    guard.close()
    jax.jit(lambda x: 5 * x)(jax.device_put(np.ones(9, np.float32)))
    assert guard.recompiles == 0


def test_forbidden_programs_fail_their_call_each_time():
    guard = CompileGuard(forbid=True)
    try:
        six = jax.jit(lambda x: 6 * x)
        known, new = (jax.device_put(np.ones(n, np.float32)) for n in (11, 12))
        six(known)
        guard.arm()
        six(known)
        for count in (1, 2):
            with pytest.raises(RecompileForbidden, match="--forbid-recompiles"):
                six(new)
            assert guard.recompiles == count
        six(known)
        with guard.lifted():
            six(new)
    finally:
        guard.close()
