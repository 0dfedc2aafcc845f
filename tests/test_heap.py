import gc

from jaxsgl.heap import YOUNG_OBJECTS, settle, unsettle


def test_it_is_looked_at_more_seldom_and_then_as_before():
    before, num_frozen = gc.get_threshold(), gc.get_freeze_count()
    gc.set_threshold(600, 7, 8)
    try:
        thresholds = settle()
        assert gc.get_threshold() == (YOUNG_OBJECTS, 7, 8)
        assert gc.get_freeze_count() > num_frozen
        unsettle(thresholds)
        assert gc.get_threshold() == (600, 7, 8)
        assert gc.get_freeze_count() == 0
    finally:
        gc.set_threshold(*before)


def test_a_program_that_wants_no_collector_or_a_lazier_one_keeps_it():
    before = gc.get_threshold()
    try:
        for lazy in (0, 5 * YOUNG_OBJECTS):
            gc.set_threshold(lazy, 10, 10)
            thresholds = settle()
            assert gc.get_threshold()[0] == lazy
            unsettle(thresholds)
    finally:
        gc.set_threshold(*before)
