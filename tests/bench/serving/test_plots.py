"""Pictures: what they draw is what was measured, in every format."""

import xml.etree.ElementTree as ElementTree

import pytest

from bench.serving.plots import FORMATS, hit_rates, plot_run, plot_sweep, save
from bench.serving.runs import Run
from tests.bench.serving.made_runs import make_run
from tests.bench.serving.test_sweep import queue


def curves(panel):
    return {line.get_label(): line.get_xydata().tolist() for line in panel.get_lines()}


def test_the_four_panels_of_a_run():
    run = make_run()
    latencies, throughput, hits, occupancy = plot_run(run, "title").axes
    assert curves(latencies)["time to first token"] == [[1000, 0.5], [3000, 1.0]]
    assert curves(latencies)["end to end"] == [[2500, 0.5], [6000, 1.0]]
    (bars,) = throughput.patches
    assert bars.get_data().values.sum() == pytest.approx(8)
    assert hit_rates(run.samples) == [(1.0, 0.4), (2.0, 0.4), (3.0, 0.4)]
    assert curves(hits)["cached share"] == [[1.0, 0.4], [2.0, 0.4], [3.0, 0.4]]
    assert curves(occupancy)["running"] == [[0, 0], [1, 2], [2, 4], [3, 0]]


def test_a_run_of_nothing_says_so():
    for panel in plot_run(Run(), "title").axes:
        assert [text.get_text() for text in panel.texts] == ["nothing to show"]


def test_a_sweep_shows_its_knee():
    left, right = plot_sweep("request-rate", [queue(0.2, 0.2), queue(0.5, 0.4)], "title").axes
    assert curves(left)["complete"] == [[0.2, 0.2], [0.5, 0.5]]
    assert curves(left)["within the bounds"] == [[0.2, 0.2], [0.5, 0.4]]
    assert "knee: 0.5" in curves(right)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_written(name, tmp_path):
    path = tmp_path / f"plot{name}"
    save(plot_run(make_run(), "<a & b>"), str(path))
    content = path.read_bytes()
    if name == ".png":
        assert content.startswith(b"\x89PNG")
    else:
        text = content.decode()
        assert ("<title>&lt;a &amp; b&gt;</title>" in text) == (name == ".html")
        ElementTree.fromstring(text[text.index("<svg") :])
