"""Charts of scores show the numbers they are given, where they belong."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from mis_lab.core.intervals import Interval
from mis_lab.report.glossary import GLOSSARY
from mis_lab.report.mis_data import AgreementMatrix, CourseCurve, PairedScores, ScoreCurve
from mis_lab.report.mis_figures import FINEST, agreement, course, curves, paired


def elements(svg, tag: str, css: str) -> list[dict[str, str]]:
    root = ElementTree.fromstring(svg)
    found = [one for one in root.iter(tag) if css in one.attrib.get("class", "").split()]
    return [{**one.attrib, "hint": "".join(one.itertext())} for one in found]


def points(path: dict[str, str]) -> np.ndarray:
    return np.array(re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path["d"]), dtype=float)


def pairs(feature, neuron, r=None) -> PairedScores:
    r = np.full(len(feature), 0.9) if r is None else np.array(r)
    return PairedScores("a.1", "random", "soft", np.array(feature), np.array(neuron), r)


def test_a_point_a_feature_over_its_neuron():
    random = np.random.default_rng(0)
    feature, neuron = random.random(30), random.random(30)
    svg = paired(pairs([*feature, np.nan, 0.5], [*neuron, 0.5, np.nan]))
    dots = elements(svg, "circle", "cloud")[:-3]  # three belong to the legend
    assert len(dots) == 30  # those without a score on either side have none
    (diagonal,) = elements(svg, "path", "equal")
    (x0, y0), (x1, y1) = points(diagonal)
    ends = np.array([*feature, *neuron, 0.5])
    room = 0.05 * np.ptp(ends)
    low, high = ends.min() - room, ends.max() + room
    at = {(float(dot["cx"]), float(dot["cy"])) for dot in dots}
    cell = abs(x1 - x0) / FINEST
    for x, y in zip(neuron, feature, strict=True):
        expected = x0 + (x - low) / (high - low) * (x1 - x0), y0 + (y - low) / (high - low) * (y1 - y0)
        assert min(max(abs(a - expected[0]), abs(b - expected[1])) for a, b in at) <= cell
    across, up = elements(svg, "line", "rank")
    assert float(across["x1"]) == pytest.approx(x0 + (np.median(neuron) - low) / (high - low) * (x1 - x0), abs=0.02)
    assert float(up["y1"]) == pytest.approx(y0 + (np.median(feature) - low) / (high - low) * (y1 - y0), abs=0.02)
    assert f"{100 * (feature > neuron).mean():.0f}\u202f% above" in svg


def test_equal_points_are_one_and_correlation_is_told():
    feature, neuron, r = [0.8] * 4 + [0.6], [0.7] * 4 + [0.6], [0.9, 0.95, 0.9, 0.1, np.nan]
    svg = paired(pairs(feature, neuron, r))
    dots = elements(svg, "circle", "cloud")[:-3]
    assert sorted(dot["class"].split()[-1] for dot in dots) == ["far", "far", "near"]
    (near,) = [dot for dot in dots if dot["class"].endswith("near")]
    far = next(dot for dot in dots if dot["class"].endswith("far"))
    assert (float(near["r"]) / float(far["r"])) ** 2 == pytest.approx(3, rel=0.02)
    assert near["hint"] == "3 features at 0.80, neuron at 0.70"
    assert "90\u202f% above" in svg  # a tie is half
    assert not elements(paired(pairs([], [])), "line", "rank")


def curve(site: str, kind: str, x, soft, setting: str = "hardness") -> ScoreCurve:
    soft = np.array(soft)
    mean = Interval(soft, soft - 0.02, soft + 0.03)
    hard = Interval(soft + 0.1, soft + 0.05, soft + 0.15)
    return ScoreCurve(site, kind, "random", setting, np.array(x, dtype=float), np.full(len(soft), 40), hard, mean)


def test_a_line_a_kind_with_its_band_harder_to_the_right():
    found = [
        curve("a.1", "neuron", [85, 95, 100], [0.6, 0.7, 0.8]),
        curve("a.1", "feature", [100, 95, 85], [0.9, 0.8, 0.7]),
        curve("b.2", "feature", [100, 95], [0.9, 0.5]),
    ]
    charts = curves(found, "soft")
    assert list(charts) == ["a.1", "b.2"]
    feature, neuron = elements(charts["a.1"], "path", "curve")  # features first
    assert "k-feature" in feature["class"]
    places = points(feature)
    assert np.diff(places[:, 0]) == pytest.approx(np.full(2, places[1, 0] - places[0, 0]), abs=0.02)
    assert places[0, 0] < places[1, 0]
    assert points(neuron)[:, 0] == pytest.approx(places[::-1, 0])  # 85 is right, wherever it stands in the data
    per_score = (points(neuron)[0, 1] - places[0, 1]) / (0.9 - 0.6)
    band = points(elements(charts["a.1"], "path", "band")[0])
    assert band[:3, 1] == pytest.approx(places[:, 1] + 0.02 * per_score, abs=0.05)
    assert band[:2:-1, 1] == pytest.approx(places[:, 1] - 0.03 * per_score, abs=0.05)
    chance = elements(charts["a.1"], "line", "chance")[0]
    assert float(chance["y1"]) == pytest.approx(places[0, 1] + 0.4 * per_score, abs=0.05)
    hints = [dot["hint"] for dot in elements(charts["a.1"], "circle", "k-feature")]
    assert hints[0] == "SAE features, hardness 100: 0.90 [0.88, 0.93], 40 units"
    # Panels have one axis of scores.
    assert points(elements(charts["b.2"], "path", "curve")[0])[0, 1] == pytest.approx(places[0, 1])
    hard = points(elements(curves(found, "hard")["a.1"], "path", "curve")[0])
    assert len(hard) == 3


def test_quantiles_stand_on_a_logarithmic_axis_at_their_own_ticks():
    svg = curves([curve("a.1", "feature", [0.01, 0.1, 0.001], [0.7, 0.5, 0.9], "quantile")], "soft")["a.1"]
    x = sorted(points(elements(svg, "path", "curve")[0])[:, 0])
    assert np.diff(x) == pytest.approx(np.full(2, x[1] - x[0]), abs=0.02)
    ticks = [tick["hint"] for tick in elements(svg, "text", "tick")]
    assert {"0.001", "0.01", "0.1"} <= set(ticks)
    with pytest.raises(ValueError, match="several settings"):
        curves([curve("a", "feature", [1], [0.5]), curve("a", "feature", [1], [0.5], "quantile")], "soft")
    assert curves([], "soft") == {}


def test_the_course_has_the_features_at_their_steps_and_the_neurons_as_a_level():
    mean = np.array([0.5, 0.7, np.nan, 0.8])
    found = CourseCurve(
        "a.1", "random", np.array([0, 10, 20, 30]), Interval(mean, mean - 0.1, mean + 0.1), 0.6, np.array([5, 6, 0, 8])
    )
    svg = course(found)
    lines = elements(svg, "path", "curve")
    level, features = sorted(lines, key=lambda one: "k-feature" in one["class"])
    assert "s-random" in level["class"]  # dashed
    places, across = points(features), points(level)
    assert len(places) == 3  # a step without a mean is left out
    assert places[2, 0] - places[0, 0] == pytest.approx(3 * (places[1, 0] - places[0, 0]), abs=0.05)
    assert across[0, 1] == across[1, 1] == pytest.approx((places[0, 1] + places[1, 1]) / 2, abs=0.02)
    assert across[0, 0] < places[0, 0] < places[2, 0] < across[1, 0]
    hints = [dot["hint"] for dot in elements(svg, "circle", "k-feature")]
    assert "features, step 30: 0.80 [0.70, 0.90], 8 units" in hints
    assert GLOSSARY["mean_soft"].axis_label in svg


def test_cells_are_as_strong_as_their_correlation():
    spearman = np.array([[1, 0.5, -0.9], [0.5, 1, np.nan], [-0.9, np.nan, 1]])
    svg = agreement(AgreementMatrix("a.1", "feature", ["soft", "monosemanticity", "my_own"], spearman))
    cells = elements(svg, "rect", "cell")
    assert len(cells) == 9
    strength = np.array([float(cell["fill-opacity"]) for cell in cells]).reshape(3, 3)
    assert strength[0, 0] > strength[0, 2] > strength[0, 1]
    assert np.array_equal(strength, strength.T)
    signs = [cell["class"].split()[1] for cell in cells]
    assert signs == ["pos", "pos", "neg", "pos", "pos", "unknown", "neg", "unknown", "pos"]
    assert cells[2]["hint"] == "soft MIS and my own: −0.900"
    numbers = [text["hint"] for text in elements(svg, "text", "cell-value")]
    assert numbers == ["1.00", "0.50", "−0.90", "0.50", "1.00", "–", "−0.90", "–", "1.00"]
    x, y = (np.array([float(cell[name]) for cell in cells]).reshape(3, 3) for name in "xy")
    assert (np.diff(x, axis=1) > 0).all()
    assert (np.diff(y, axis=0) > 0).all()


@pytest.mark.parametrize(
    "svg",
    [
        paired(pairs([0.5], [0.6])),
        *curves([curve("a.1", "feature", [100, 90], [0.7, 0.6])], "hard").values(),
        agreement(AgreementMatrix("a.1", "neuron", ["soft", "hard"], np.eye(2))),
    ],
)
def test_axes_are_named_by_the_glossary(svg):
    labels = elements(svg, "text", "axis-label")
    assert labels
    assert all(label["hint"] == GLOSSARY[label["data-term"]].axis_label for label in labels)
