"""Charts show the numbers they are given, where they belong."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from mis_lab.core.intervals import Interval
from mis_lab.report import figures
from mis_lab.report.data import FaithfulnessCurve, KindScores, SiteSae
from mis_lab.report.wording import fixed


def elements(svg, tag: str, css: str) -> list[dict[str, str]]:
    """Attributes (and the hint) of elements with a style class."""
    root = ElementTree.fromstring(svg)
    found = [one for one in root.iter(tag) if css in one.attrib.get("class", "").split()]
    return [{**one.attrib, "hint": "".join(one.itertext())} for one in found]


def scored(kind: str, values: list[float]) -> KindScores:
    soft = np.array(values)
    return KindScores(
        "a.1", kind, np.arange(len(soft)), ["ok"] * len(soft), soft, {"random": {"soft": soft, "hard": soft}}
    )


def test_medians_stand_at_their_place_on_the_axis_and_units_without_a_score_do_not_count():
    scores = [scored("neuron", [0.6, 0.7, np.nan, 0.8]), scored("feature", [0.9, 0.9])]
    svg = figures.distributions(scores, "a.1", "random", "soft", (0.4, 1.0))
    feature, neuron = elements(svg, "line", "median")  # features first, whatever the order given
    chance = elements(svg, "line", "chance")[0]
    per_score = (float(feature["x1"]) - float(neuron["x1"])) / (0.9 - 0.7)
    assert float(neuron["x1"]) - float(chance["x1"]) == pytest.approx(per_score * (0.7 - 0.5), abs=0.05)
    hints = [area["hint"] for area in elements(svg, "path", "area")]
    assert hints == ["SAE features: 2 units, median 0.900", "neurons: 3 units, median 0.700"]


def test_a_histogram_has_the_area_of_its_counts():
    values = np.random.default_rng(0).beta(8, 4, 500)
    svg = figures.distributions([scored("feature", values.tolist())], "a.1", "random", "soft", (0.0, 1.0))
    points = np.array(re.findall(r"[ML]([\d.-]+) ([\d.-]+)", elements(svg, "path", "area")[0]["d"]), dtype=float)
    heights = points[:, 1].max() - points[1:-1:2, 1]
    edges = np.arange(-0.0125, 1.025, 0.025)
    expected = np.histogram(values, edges)[0]
    assert heights / heights.max() == pytest.approx(expected / expected.max(), abs=0.01)


def test_all_panels_share_an_axis_that_holds_every_score():
    low, high = figures.score_range([scored("neuron", [0.31, 0.9]), scored("feature", [0.7])], ["random"], "soft")
    assert low <= 0.31
    assert low == pytest.approx(0.3)
    assert high == 1.0
    assert figures.score_range([], ["random"], "soft")[0] == pytest.approx(0.4)


def row(made_up, units, groups, p=0.001):
    first = made_up().comparisons[0]
    return dataclasses.replace(first, mean_difference=units, mean_difference_groups=groups, p_holm=p)


def test_differences_are_drawn_to_scale_with_both_intervals(made_up):
    rows = [
        row(made_up, Interval(0.1, 0.05, 0.15), Interval(0.1, -0.1, 0.3)),
        row(made_up, Interval(-0.1, -0.15, -0.05), None),
    ]
    svg = figures.differences(rows)
    zero = float(elements(svg, "line", "zero")[0]["x1"])
    (whisker,) = elements(svg, "line", "whisker")
    bars, dots = elements(svg, "rect", "bar"), elements(svg, "circle", "dot")
    per_unit = (float(dots[0]["cx"]) - zero) / 0.1
    assert per_unit > 0
    assert float(whisker["x2"]) - zero == pytest.approx(0.3 * per_unit, abs=0.1)
    assert float(bars[0]["width"]) == pytest.approx(0.1 * per_unit, abs=0.1)
    assert zero - float(dots[1]["cx"]) == pytest.approx(0.1 * per_unit, abs=0.1)
    assert "k-feature" in dots[0]["class"]
    assert "k-neuron" in dots[1]["class"]


def test_a_difference_that_is_not_clear_is_grey(made_up):
    svg = figures.differences([row(made_up, Interval(0.1, 0.05, 0.15), None, p=0.2)])
    assert "k-none" in elements(svg, "circle", "dot")[0]["class"]


def sae(density) -> SiteSae:
    return SiteSae("a.1", "topk", 6, 100, 0.2, None, 2.0, 0.0, density_f=density)


def test_densities_are_counted_in_their_decades_and_dead_features_apart():
    svg = figures.density(sae(np.array([0, 0, 0.5, 0.02, 0.021, 1.0])))
    hints = [bar["hint"] for bar in elements(svg, "rect", "bar")]
    assert hints[-1] == "2 dead features"
    assert sum(int(hint.split()[0]) for hint in hints[:-1]) == 4
    heights = [float(bar["height"]) for bar in elements(svg, "rect", "bar")]
    assert heights[0] == pytest.approx(heights[-1])  # the two at 0.02 as high as the two dead ones


@pytest.mark.parametrize("density", [np.zeros(4), np.ones(4)])
def test_an_sae_with_only_dead_or_only_dense_features_has_a_chart(density):
    assert elements(figures.density(sae(density)), "rect", "bar")


def curve(values, kind="feature", selection="effect") -> FaithfulnessCurve:
    values = np.array(values, dtype=float)
    return FaithfulnessCurve(kind, selection, np.array([0, 1, 10, 100]), values, values - 0.1, values + 0.1)


def test_faithfulness_leaves_out_size_0_and_keeps_wild_values_on_the_page():
    svg = figures.faithfulness([curve([0, 0.2, 8.0, 1]), curve([0, 0, 0.1, 1], "neuron")], n_shown=10)
    dots = elements(svg, "circle", "dot")
    assert len(dots) == 6
    assert all(0 <= float(dot["cy"]) <= 340 for dot in dots)
    assert dots[1]["hint"].startswith("SAE features, by effect: 10 nodes, 8.00 [7.90, 8.10]")
    x = [float(dot["cx"]) for dot in dots[:3]]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.02)  # log axis
    assert float(elements(svg, "line", "chance")[0]["x1"]) == pytest.approx(x[1], abs=0.01)


def test_long_names_of_rows_have_room(data):
    rows = [
        dataclasses.replace(one, site="blocks.2 control=frozen_decoder experiment=controls") for one in data.comparisons
    ]
    label = elements(figures.differences(rows), "text", "row-label")[0]
    assert float(label["x"]) > 6.5 * len(rows[0].site)


def test_without_limits_there_is_a_line_and_no_band():
    bare = dataclasses.replace(curve([0, 0.2, 0.6, 1]), low=np.full(4, np.nan), high=np.full(4, np.nan))
    svg = figures.faithfulness([bare, curve([0, 0, 0.1, 1], "neuron")])
    assert len(elements(svg, "path", "band")) == 1
    assert "NaN" not in svg
    assert "nan" not in svg
    assert elements(svg, "circle", "dot")[1]["hint"] == "SAE features, by effect: 10 nodes, 0.60 –"


def test_a_glyph_grows_in_area_with_the_effect_and_shows_its_sign():
    small, large = (
        float(elements(figures.node_glyph("feature", effect, 1.0), "circle", "node")[0]["r"]) for effect in (0.25, 1.0)
    )
    assert (small - 5) / (large - 5) == pytest.approx(0.5)
    assert ">−<" in figures.node_glyph("feature", -0.5, 1.0)
    assert elements(figures.node_glyph("feature", -0.5, 1.0), "circle", "neg")
    assert elements(figures.node_glyph("error", 0.5, 1.0), "path", "error")


def test_figures_are_written_as_files_that_stand_alone(data, tmp_path):
    paths = figures.write_figures(data, tmp_path)
    assert {"differences", "faithfulness", "density/blocks.2", "scores/blocks.6/bottom/hard"} <= set(paths)
    for path in paths.values():
        text = path.read_text(encoding="utf-8")
        assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert (
        fixed(float(np.median(data.scores[0].of("random", "soft")))) in paths["scores/blocks.2/random/soft"].read_text()
    )
