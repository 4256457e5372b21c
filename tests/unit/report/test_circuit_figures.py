"""Charts about circuits show the numbers they are given, where they belong; files stand alone."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from mis_lab.core.intervals import Interval
from mis_lab.report import circuit_figures, circuit_files, circuit_tables
from mis_lab.report.circuit_data import CircuitDetails, CmdDifference, CompletenessCurve
from mis_lab.report.data import FaithfulnessCurve
from mis_lab.report.glossary import GLOSSARY
from mis_lab.report.wording import percent


def elements(svg, tag: str, css: str) -> list[dict[str, str]]:
    """Attributes (and the hint) of elements with a style class."""
    root = ElementTree.fromstring(svg)
    found = [one for one in root.iter(tag) if css in one.attrib.get("class", "").split()]
    return [{**one.attrib, "hint": "".join(one.itertext())} for one in found]


def test_completeness_falls_from_left_to_right_on_a_log_axis():
    n, left = np.array([0, 1, 10, 100]), np.array([1.0, 0.8, 0.3, 0.0])
    svg = circuit_figures.completeness([CompletenessCurve("feature", n, left, left - 0.1, left + 0.1)], 10)
    dots = [dot for dot in elements(svg, "circle", "dot") if dot["hint"]]
    assert [dot["hint"].split(", ")[1].split(" ")[0] for dot in dots] == ["0.80", "0.30", "0.00"]
    x, y = ([float(dot[name]) for dot in dots] for name in ("cx", "cy"))
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.02)
    assert (y[1] - y[0]) / (y[2] - y[1]) == pytest.approx(0.5 / 0.3, abs=0.02)
    (pictured,) = elements(svg, "line", "chance")
    assert float(pictured["x1"]) == pytest.approx(x[1], abs=0.01)


def test_circuits_are_closer_or_farther_as_the_interval_says(data):
    differences = [
        CmdDifference("feature", "best_random", Interval(-0.2, -0.3, -0.1)),
        CmdDifference("feature", "by_change", Interval(0.01, -0.1, 0.1)),
        CmdDifference("feature", "neuron", Interval(0.2, 0.1, 0.3)),
        CmdDifference("neuron", "class a against class b", Interval(-0.2, np.nan, np.nan)),
    ]
    table = circuit_tables.difference_table(differences)
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["SAE features", "the best random one", "\u22120.20", "closer"],
        ["SAE features", "ordered by change", "+0.01", "unclear"],
        ["SAE features", "neurons", "+0.20", "farther"],
        ["class a, neurons", "class b, on images of class a", "\u22120.20", "no interval"],
    ]
    assert [row[2].more for row in table.rows][2:] == ["[0.10, 0.30]", "–"]


def test_curves_without_limits_have_no_band():
    n, none = np.array([0, 1, 10]), np.full(3, np.nan)
    left = np.array([1.0, 0.4, 0.0])
    for svg in (
        circuit_figures.completeness([CompletenessCurve("feature", n, left, none, none)]),
        circuit_figures.distance([FaithfulnessCurve("feature", "effect", n, left, none, none)]),
    ):
        assert not elements(svg, "path", "band")
        assert len(elements(svg, "circle", "dot")) >= 2
        assert "nan" not in svg


def test_distance_from_the_whole_network_is_the_same_on_either_side():
    n, f = np.array([0, 1, 10, 100]), np.array([0.0, 0.6, 1.4, 1.0])
    svg = circuit_figures.distance([FaithfulnessCurve("feature", "effect", n, f, f - 0.1, f + 0.1)])
    dots = [dot for dot in elements(svg, "circle", "dot") if dot["hint"]]
    assert float(dots[0]["cy"]) == pytest.approx(float(dots[1]["cy"]), abs=0.01)
    assert float(dots[2]["cy"]) > float(dots[0]["cy"])
    assert dots[1]["hint"] == "SAE features, by effect: 10 nodes, 0.40 [0.30, 0.50]"


def test_histograms_have_the_area_of_all_live_units(data):
    ranked = data.circuit_details.ranked
    charts = circuit_figures.effect_charts(ranked)
    assert [chart.site for chart in charts] == ["blocks.2", "blocks.4", "blocks.6", "", ""]
    areas = elements(charts[0].svg, "path", "area")
    assert [area["hint"].split(":")[0] for area in areas] == ["SAE features", "neurons"]
    for area, one in zip(areas, ranked, strict=True):
        here = np.abs(one.effect[(one.site == 0) & ~one.is_error])
        assert f": {len(here)} nodes, median" in area["hint"]
        points = np.array(re.findall(r"[ML]([\d.-]+) ([\d.-]+)", area["d"]), dtype=float)
        heights = points[:, 1].max() - points[1:-1:2, 1]
        centre = (heights * (points[1:-1:2, 0] + points[2:-1:2, 0]) / 2).sum() / heights.sum()
        # One pixel a bar's half width off, at most: the mean of log |effect| is where the area balances.
        every = np.concatenate([np.abs(o.effect[(o.site == 0) & ~o.is_error]) for o in ranked])
        share = (np.log(here).mean() - np.log(every.min())) / np.ptp(np.log(every))
        start, end = points[:, 0].min(), points[:, 0].max()
        room = (end - start) * 0.05 / 1.1
        assert centre == pytest.approx(start + room + share * (end - start - 2 * room), abs=(end - start) / 48)


def test_more_nodes_pass_a_lower_threshold(data):
    svg = circuit_figures.effect_charts(data.circuit_details.ranked)[-1].svg
    dots = [dot for dot in elements(svg, "circle", "dot") if dot["hint"].startswith("SAE features")]
    heights = [float(dot["cy"]) for dot in dots]
    assert heights == sorted(heights)  # further down the page
    n_nodes = int(dots[0]["hint"].split(": ")[1].split(" with")[0].replace("\u202f", ""))
    assert n_nodes == len(data.circuit_details.ranked[0].effect)


def test_scores_stand_beside_effects_sizes_thresholds_and_faithfulness(data):
    charts = circuit_figures.score_charts(data.circuit_details.ranked, data.faithfulness)
    assert len(charts) == 5
    assert all(re.search(r"Spearman's ρ [+−]?0\.\d\d$", chart.words) for chart in charts[:2])
    one = data.circuit_details.ranked[0]
    hints = [dot["hint"] for dot in elements(charts[2].svg, "circle", "dot") if dot["hint"].startswith("SAE features")]
    kept = np.isfinite(one.mis)
    assert hints[-1].endswith(f"{kept.sum():,} scored, mean {one.mis[kept].mean():.3f}".replace(",", "\u202f", 1))
    assert len(elements(charts[2].svg, "path", "s-random")) == 2  # the means of all units


def test_without_scores_nobody_asks_whether_circuits_are_easier_to_understand(data):
    silent = [dataclasses.replace(one, mis=np.full(len(one.mis), np.nan)) for one in data.circuit_details.ranked]
    assert circuit_figures.score_charts(silent, data.faithfulness) == []


def test_densities_of_features_are_drawn_where_they_are_not_zero(data):
    charts = circuit_figures.activity_charts(data.circuit_details.activity)
    assert [chart.site for chart in charts] == ["blocks.2", "blocks.4", "blocks.6"]
    first = data.circuit_details.activity[0]
    assert percent(first.dead_share) in charts[0].words
    assert 100 < len(elements(charts[0].svg, "circle", "cloud")) <= len(first.density) - 5


def test_every_axis_of_a_chart_is_in_the_glossary_and_every_caption_a_term(data):
    details = data.circuit_details
    charts = [
        *circuit_figures.effect_charts(details.ranked),
        *circuit_figures.score_charts(details.ranked, data.faithfulness),
        *circuit_figures.activity_charts(details.activity),
    ]
    for chart in charts:
        assert chart.term in GLOSSARY
        assert all(label["data-term"] in GLOSSARY for label in elements(chart.svg, "text", "axis-label"))


def test_tables_tell_what_was_measured_and_leave_out_what_was_not(data):
    found = [
        circuit_tables.circuit_site_table(data.circuit),
        circuit_tables.curve_table(data.faithfulness, data.circuit_details, 18),
        circuit_tables.agreement_table(data.circuit_details.agreement),
        circuit_tables.activity_table(data.circuit_details.activity),
    ]
    for table in found:
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}
    assert [cell.text for cell in next(zip(*[row[::-1] for row in found[0].rows], strict=True))] == [
        "62\u202f%",
        "41\u202f%",
        "–",
    ]
    without = [dataclasses.replace(site, coverage=None) for site in data.circuit.sites]
    table = circuit_tables.circuit_site_table(dataclasses.replace(data.circuit, sites=without))
    assert "edge_coverage" not in {column.term for column in table.columns}
    table = circuit_tables.curve_table(data.faithfulness, CircuitDetails(), 18)
    assert "completeness" not in {column.term for column in table.columns}


def test_charts_of_circuits_are_written_as_files_that_stand_alone(data, tmp_path):
    paths = circuit_files.write_circuit_figures(data, tmp_path)
    assert {"circuit/graph", "circuit/completeness", "circuit/effects_blocks.2", "circuit/scores_0"} <= set(paths)
    for path in paths.values():
        text = path.read_text(encoding="utf-8")
        assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    nothing = dataclasses.replace(data, circuit=None, circuit_details=CircuitDetails(), faithfulness=())
    assert circuit_files.write_circuit_figures(nothing, tmp_path / "none") == {}
