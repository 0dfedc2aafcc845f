"""Parts of a piece of work, timed."""

from jaxsgl.runner.part_times import PartTimes


def test_each_part_is_from_the_end_of_the_one_before():
    times = PartTimes(iter([10.0, 11.5, 15.5]).__next__)
    times.ended("reading")
    times.ended("writing")
    assert (times.of("reading"), times.of("writing"), times.of("resting")) == (1.5, 4.0, None)
    assert str(times) == "reading 1.50 s, writing 4.00 s"
