"""What the page tells of an SAE's training, classes and space is what the data say."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from mis_lab.report import sae_figures
from mis_lab.report.sae_collect import alike_together, most_used, superposition, training_course
from mis_lab.report.sae_data import ClassSelectivity, TrainingCourse
from mis_lab.report.sae_tables import MOST_SETS, classes_table, revived_table, superposition_table
from mis_lab.sae.dead import Fates
from mis_lab.sae.geometry import geometry


def elements(svg, tag: str, css: str) -> list[dict[str, str]]:
    root = ElementTree.fromstring(svg)
    found = [one for one in root.iter(tag) if css in one.attrib.get("class", "").split()]
    return [{**one.attrib, "hint": "".join(one.itertext())} for one in found]


def points(path: dict[str, str]) -> np.ndarray:
    return np.array(re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path["d"]), dtype=float)


def course(fates: Fates | None = None, **losses) -> TrainingCourse:
    return TrainingCourse(
        {name: np.array(values, dtype=float) for name, values in losses.items()}, {}, fates or Fates({}, {})
    )


def test_a_curve_leaves_out_what_is_not_finite_and_goes_logarithmic_when_it_falls_far():
    plain = sae_figures.training_curves("a.1", course(step=[0, 1, 2, 3], loss=[2.0, np.nan, 1.5, 1.0]))["loss"]
    assert len(points(elements(plain, "path", "curve")[0])) == 3
    far = sae_figures.training_curves("a.1", course(step=[0, 1, 2, 3], loss=[100.0, 10.0, 1.0, 0.1]))["loss"]
    y = points(elements(far, "path", "curve")[0])[:, 1]
    assert np.diff(y) == pytest.approx(np.full(3, y[1] - y[0]), abs=0.05)  # a straight line of powers of ten


def test_every_logged_name_has_a_curve_and_held_out_ones_lie_on_the_same_axes():
    training = course(step=[0, 10], aux=[1.0, 0.5], loss=[1.0, 0.8], fvu=[0.6, 0.4])
    known = dataclasses.replace(
        training, evaluations={"step": np.array([0.0, 5, 10]), "fvu": np.array([0.6, 0.5, 0.4]), "l0": np.full(3, 8.0)}
    )
    charts = sae_figures.training_curves("a.1", known)
    assert list(charts) == ["loss", "fvu", "l0", "aux"]
    batch, held_out = (points(path) for path in elements(charts["fvu"], "path", "curve"))
    assert batch[0] == pytest.approx(held_out[0])
    assert batch[1] == pytest.approx(held_out[2])
    assert len(elements(charts["fvu"], "circle", "dot")) == 3
    assert sae_figures.main_curve(known) == "fvu"
    assert sae_figures.main_curve(course(step=[0], loss=[1.0])) == "loss"
    assert sae_figures.main_curve(course()) is None


def test_what_training_left_is_read_and_what_it_did_not_leave_is_empty(tmp_path):
    assert training_course(tmp_path) == TrainingCourse({}, {}, Fates({}, {}))
    (tmp_path / "losses.json").write_text('{"step": [0, 5], "loss": [2, 1]}')
    assert training_course(tmp_path).losses["loss"].tolist() == [2.0, 1.0]


def test_dead_and_revived_features_are_counted_at_their_steps():
    fates = Fates({0: frozenset(), 10: frozenset({1, 2, 3, 4})}, {5: frozenset({7, 8})})
    svg = sae_figures.fates("a.1", course(fates))
    (line,), (stem,) = elements(svg, "path", "curve"), elements(svg, "line", "whisker")
    (x0, y0), (x10, y10) = points(line)
    assert float(stem["x1"]) == pytest.approx((x0 + x10) / 2, abs=0.02)
    assert float(stem["y2"]) == pytest.approx((y0 + y10) / 2, abs=0.02)  # 2 of 4
    hints = [dot["hint"] for dot in elements(svg, "circle", "dot")]
    assert hints == ["step 0: 0 features dead", "step 10: 4 features dead"]


def test_the_table_of_revived_features_has_shares_of_its_rows():
    fates = Fates(
        {0: frozenset({9}), 40: frozenset({1})}, {10: frozenset({1, 2}), 20: frozenset(), 30: frozenset({2, 3, 4, 5})}
    )
    table = revived_table("a.1", course(fates))
    assert [column.label for column in table.columns[2:]] == ["also at 10", "also at 30", "dead at 40"]
    assert [[cell.sort for cell in row] for row in table.rows] == [
        [10.0, 2.0, "–", 0.5, 0.5],
        [30.0, 4.0, 0.25, "–", 0.0],
    ]
    assert revived_table("a.1", course(Fates({0: frozenset({1})}, {5: frozenset()}))) is None
    many = Fates({}, {step: frozenset({step}) for step in range(1, 50)})
    assert len(revived_table("a.1", course(many)).rows) == MOST_SETS


def selective(kind: str, histogram: list[int]) -> ClassSelectivity:
    n = sum(histogram)
    return ClassSelectivity(kind, len(histogram) - 1, np.array(histogram), np.linspace(0, 1, n), np.full(n, np.nan))


def test_bars_of_classes_are_shares_and_both_kinds_have_one_axis():
    charts = sae_figures.class_histograms(
        "a.1", [selective("feature", [1, 2, 0, 1]), selective("neuron", [0, 0, 0, 2])]
    )
    dead, one, three = (elements(charts["feature"], "rect", "bar")[place] for place in range(3))
    assert "k-none" in dead["class"]
    assert float(one["height"]) == pytest.approx(2 * float(dead["height"]), abs=0.02)
    assert one["hint"] == "50.0\u202f% of the SAE features: 1 class"
    assert float(three["height"]) == pytest.approx(float(dead["height"]), abs=0.02)
    (all_three,) = elements(charts["neuron"], "rect", "bar")
    assert float(all_three["height"]) == pytest.approx(2 * float(one["height"]), abs=0.02)
    assert all_three["x"] == three["x"]


def test_many_classes_share_bars_and_no_unit_is_lost():
    histogram = np.random.default_rng(0).integers(0, 5, 251).tolist()
    chart = sae_figures.class_histograms("a.1", [selective("feature", histogram)])["feature"]
    bars = elements(chart, "rect", "bar")
    assert len(bars) <= sae_figures.MOST_BARS + 1
    heights = np.array([float(bar["height"]) for bar in bars])
    shares = [float(re.match(r"[\d.]+", bar["hint"])[0]) for bar in bars]
    assert sum(shares) == pytest.approx(100, abs=3)
    assert heights / heights.sum() == pytest.approx(np.array(shares) / sum(shares), abs=0.005)


@pytest.mark.parametrize(("histogram", "median"), [([3, 1, 0, 2], 3.0), ([0, 1, 1], 1.5), ([2, 0, 0], np.nan)])
def test_the_median_is_of_the_living(histogram, median):
    assert selective("feature", histogram).median_classes == pytest.approx(median, nan_ok=True)


def picture(svg) -> np.ndarray:
    uri = next(one.attrib["href"] for one in ElementTree.fromstring(svg).iter("image"))
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_the_picture_of_overlaps_has_a_cell_a_pair():
    directions_fd = torch.tensor([[1.0, 0, 0], [0, 2, 0], [0.6, 0.8, 0], [0, 0, 1], [0, 0, 0]])
    found = superposition(geometry(directions_fd), "dictionary", directions_fd, np.array([0.1, 0.2, 0.3, 0.0, 0.9]))
    assert sorted(found.shown) == [0, 1, 2]  # 3 never fires, 4 has no length
    cells = picture(sae_figures.overlap_picture("a.1", found))[..., 3] / 255
    cosine = {(0, 2): 0.6, (1, 2): 0.8, (0, 1): 0.0}
    for a, first in enumerate(found.shown):
        for b, second in enumerate(found.shown):
            expected = 0.8 if a == b else cosine[min(first, second), max(first, second)]  # the scale ends at .8
            assert cells[a, b] == pytest.approx(expected / 0.8, abs=0.003)


def test_alike_features_lie_beside_each_other_in_a_small_picture():
    random = np.random.default_rng(0)
    centres = np.eye(4, 16)
    directions = torch.from_numpy(
        np.repeat(centres, 16, 0)[random.permutation(64)] + 0.05 * random.normal(size=(64, 16))
    )
    found = superposition(geometry(directions), "dictionary", directions, np.ones(64))
    groups = [int(np.argmax(np.abs(directions[f][:4].numpy()))) for f in found.shown]
    assert sum(a != b for a, b in pairwise(groups)) == 3
    assert len(sae_figures.overlap_picture("a.1", found)) < 20_000
    assert alike_together(np.eye(2)).tolist() == [0, 1]


def test_the_most_used_features_come_first():
    assert most_used(np.array([0.1, 0.5, 0.0, 0.5, 0.3]), np.ones(5), 3) == [1, 3, 4]


def test_dimensionalities_are_counted_and_singular_values_are_shares_of_the_largest():
    directions_fd = torch.diag(torch.tensor([4.0, 2.0, 1.0]))
    found = superposition(geometry(directions_fd), "dictionary")
    (bar,) = elements(sae_figures.dimensionalities("a.1", found), "rect", "bar")
    assert bar["hint"] == "3 directions with 0.975 to 1.000"
    svg = sae_figures.spectrum("a.1", {"dictionary": found})
    y = points(elements(svg, "path", "curve")[0])[:, 1]
    assert (y[2] - y[0]) / (y[1] - y[0]) == pytest.approx(3 / 2, abs=0.01)  # 1, ½, ¼ on a linear axis
    (rank,) = elements(svg, "line", "rank")
    x = points(elements(svg, "path", "curve")[0])[:, 0]
    p = np.array([4, 2, 1]) / 7
    assert float(rank["x1"]) == pytest.approx(x[0] + (np.exp(-(p * np.log(p)).sum()) - 1) * (x[1] - x[0]), abs=0.05)


def test_tables_have_a_row_a_kind_and_a_row_a_set_of_directions(data):
    for table, n_rows in ((classes_table(data.saes), 6), (superposition_table(data.saes), 4)):
        assert len(table.rows) == n_rows
        assert {len(row) for row in table.rows} == {len(table.columns)}
    one = data.saes[0].selectivity[0]
    assert classes_table(data.saes).rows[0][4].sort == one.median_classes
    assert classes_table(data.saes).rows[0][5].sort == pytest.approx(np.nanmedian(one.entropy_u))
