"""The page of a sweep and its charts: points where the numbers are, everything explained, one file."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from itertools import product

import numpy as np
import pytest

from mis_lab.core.errors import ConfigError
from mis_lab.report import sweep_figures
from mis_lab.report.glossary import GLOSSARY
from mis_lab.report.sweep import RANKED, SeedStability, Sweep, SweptRun, SweptSae
from mis_lab.report.sweep_page import render_sweep, write_sweep
from mis_lab.sae.stability import Stability

SITES = ("a.1", "a.2")
OPTIONS = {"sae": ["relu", "topk"], "sae.expansion": ["2", "4"], "sae.k": ["4", "16"]}


def elements(svg, tag: str, css: str) -> list[dict[str, str]]:
    root = ElementTree.fromstring(svg)
    found = [one for one in root.iter(tag) if css in one.attrib.get("class", "").split()]
    return [{**one.attrib, "hint": "".join(one.itertext())} for one in found]


def points(path: dict[str, str]) -> np.ndarray:
    return np.array(re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path["d"]), dtype=float)


def swept_sae(architecture: str, expansion: int, k: int, seed: int, site: str, **numbers: float) -> SweptSae:
    l0 = float(k)
    fvu = 1 / (1 + k * expansion) + 0.01 * seed
    known = {
        "fvu": fvu, "nrmse": fvu / 4, "l1": 0.3 * l0, "dead_share": 0.01 * k, "l0": l0,
        "loss_difference": 5 * fvu, "recovered_mean": 1 - 1.2 * fvu, "mis_median": 0.7 - 0.01 * k,
    }  # fmt: skip
    course = {"step": np.array([0.0, 50, 100]), "fvu": np.array([1.1, 2 * fvu, fvu]), "l0": np.array([2 * l0, l0, l0])}
    options = {"sae": architecture, "sae.expansion": str(expansion), "sae.k": str(k) if architecture == "topk" else ""}
    words = f"{architecture}-{expansion}-{k}"
    return SweptSae(
        f"{words}-{seed}", site, architecture, seed, options, words, known | numbers, course, 0.01 * k, 0.04 * k
    )


@pytest.fixture(scope="module")
def made() -> Sweep:
    """Two architectures, two expansions, two k (of the first architecture), two seeds, two sites."""
    settings = [("topk", *one) for one in product((2, 4), (4, 16))] + [("relu", 2, 9), ("relu", 4, 9)]
    saes = [swept_sae(*one, seed, site) for one in settings for seed in (0, 1) for site in SITES]
    runs = [
        SweptRun(sae.run, sae.seed, sae.options, 0.1, 12.0, {"evaluate/a.1/held_out/fvu": sae.number("fvu")})
        for sae in saes
        if sae.site == "a.1"
    ]
    alike = [SeedStability("a.1", saes[:2], Stability((0.61, 0.63, 0.71), (0.2, 0.2, 0.2)))]
    return Sweep("made-up", runs, saes, OPTIONS, 2, alike, ["a note"])


@pytest.fixture(scope="module")
def html(made) -> str:
    return render_sweep(made)


def test_the_page_is_whole_and_asks_for_nothing(html):
    sections = re.findall(r'<section id="(\w+)"', html)
    assert sections == [
        "overview", "ranking", "pareto", "options", "course", "densities", "stability", "runs", "glossary",
    ]  # fmt: skip
    assert re.findall(r'<li><a href="#(\w+)"', html) == sections
    assert not re.search(r"https?://", html)
    assert "made-up: 12 runs, 24 SAEs" in html
    assert "{{" not in html
    assert "a note" in html


def test_every_number_of_the_page_is_explained_on_it(html):
    named = set(re.findall(r'data-term="(\w+)"', html))
    defined = set(re.findall(r'id="term-(\w+)"', html))
    assert named == defined <= set(GLOSSARY)
    plain = {"Run", "Site", "SAE", "Seed", "Number", *OPTIONS}
    for attributes, label in re.findall(r"<th ([^>]*)>.*?<button[^>]*>([^<]*)", html):
        assert "data-term" in attributes or label in plain, label


def test_every_entry_for_sweeps_is_on_a_page_that_ranks_by_all(made):
    full = [dataclasses.replace(sae, numbers={**sae.numbers, **more()}) for sae in made.saes]
    html = render_sweep(dataclasses.replace(made, saes=full), [*full[0].numbers])
    named = set(re.findall(r'data-term="(\w+)"', html))
    assert {key for key, entry in GLOSSARY.items() if entry.page == "sweep"} - named == set()


def more() -> dict[str, float]:
    return {"kl": 1.0, "agreement": 0.5, "recovered_zero": 0.5, "mis_mean": 0.6}


def test_the_lead_says_what_differs_and_who_is_first(html, made):
    assert "sae (relu, topk), sae.expansion (2, 4) and sae.k (4, 16) and in their seed." in html
    assert re.search(r"At a\.1, .* first by 7 measures taken together", html)


def test_ranks_stand_below_values_and_unranked_measures_are_told(made):
    lacking = [
        dataclasses.replace(sae, numbers={**sae.numbers, "mis_median": float("nan")}) if sae.seed else sae
        for sae in made.saes
    ]
    html = render_sweep(dataclasses.replace(made, saes=lacking))
    assert "Shown but not counted, since some SAEs lack it: Median MIS." in html
    assert re.search(r'data-sort="0\.1211\d*">0\.121<small>rank 12<', html)
    with pytest.raises(ConfigError, match="no measure"):
        render_sweep(made, ["wrong"])


def at(svg: str) -> dict[str, tuple[float, float]]:
    """Hint → centre of every mark."""
    found = {dot["hint"]: (float(dot["cx"]), float(dot["cy"])) for dot in elements(svg, "circle", "dot")}
    return found | {dot["hint"]: tuple(points(dot).mean(0)) for dot in elements(svg, "path", "dot")}


def test_seeds_are_one_point_with_their_spread(made):
    plot = sweep_figures.pareto(made, "a.1", "fvu", high_is_good=False)
    svg = plot.svg.render()
    marks = at(svg)
    assert len(marks) == 6
    hint = next(hint for hint in marks if "sae.expansion=2, sae.k=4" in hint)
    assert hint == "topk, sae=topk, sae.expansion=2, sae.k=4, 2 seeds: 4; 0.116 ± 0.00707"
    x, y = marks[hint]
    mean, std = 1 / 9 + 0.005, 0.01 / np.sqrt(2)
    assert (x, y) == pytest.approx((plot.x(4), plot.y(mean)), abs=1)
    whisker = next(one for one in elements(svg, "line", "whisker") if abs(float(one["x1"]) - x) < 1)
    ends = sorted((float(whisker["y1"]), float(whisker["y2"])))
    assert ends == pytest.approx([plot.y(mean + std), plot.y(mean - std)], abs=0.02)


def test_the_front_passes_through_what_nothing_beats(made):
    plot = sweep_figures.pareto(made, "a.1", "fvu", high_is_good=False)
    corners = points(elements(plot.svg.render(), "path", "front")[0])
    best = [(4, 1 / 17), (9, 1 / 37), (16, 1 / 65)]  # expansion 4 throughout
    for l0, fvu in best:
        distance = np.abs(corners - [plot.x(l0), plot.y(fvu + 0.005)]).max(1).min()
        assert distance < 0.02
    assert len(corners) == 5


def test_an_option_has_a_line_for_every_combination_of_the_others(made):
    drawn = [chart for chart in sweep_figures.charts(made) if chart.section == "options" and chart.site == "a.1"]
    by_name = {chart.name: chart for chart in drawn}
    k = by_name["sae.k_fvu_a.1"]
    assert [style.label for style in k.legend] == ["sae=topk, sae.expansion=2", "sae=topk, sae.expansion=4"]
    assert len(elements(k.svg, "path", "joined")) == 2
    assert len(at(k.svg)) == 4  # relu has no k
    expansion = by_name["sae.expansion_l0_a.1"]
    assert [style.label for style in expansion.legend] == ["sae=relu", "sae=topk, sae.k=4", "sae=topk, sae.k=16"]
    names = by_name["sae_fvu_a.1"]
    assert not elements(names.svg, "path", "joined")
    assert re.findall(r">(relu|topk)</text>", names.svg) == ["relu", "topk"]
    assert {chart.block for chart in drawn} == {"sae", "sae.expansion", "sae.k", "each other"}


def test_a_path_of_training_ends_at_the_last_evaluation(made):
    styles = sweep_figures.course_styles(made)
    plot = sweep_figures.course(made, "a.1", styles)
    svg = plot.svg.render()
    assert len(elements(svg, "path", "joined")) == 12
    path = points(elements(svg, "path", "joined")[0])
    assert path[-1] == pytest.approx([plot.x(4), plot.y(1 / 9)], abs=0.02)
    marks = at(svg)
    ends = [hint for hint in marks if "at the end" in hint]
    assert len(ends) == 12
    assert len(styles) == 6


def test_densities_lie_above_the_line_of_equals(made):
    plot = sweep_figures.densities(made, "a.1")
    svg = plot.svg.render()
    line = points(elements(svg, "path", "equal")[0])
    slope = (line[1] - line[0]) / np.abs(line[1] - line[0]).max()
    for x, y in at(svg).values():
        on_line = line[0] + slope / slope[0] * (x - line[0][0])
        assert y < on_line[1]
    assert line[0] == pytest.approx([plot.x(plot.x.low), plot.y(plot.x.low)], abs=0.02)


def test_figures_stand_alone_with_their_legend(made, tmp_path):
    page = write_sweep(made, tmp_path)
    assert page == tmp_path / "sweep.html"
    files = sorted((tmp_path / "figures").iterdir())
    assert len(files) == len(sweep_figures.charts(made))
    names = {file.name for file in files}
    assert {"pareto_fvu_a.1.svg", "sae.k_l1_a.2.svg", "course_a.1.svg", "densities_a.2.svg"} <= names
    for file in files:
        root = ElementTree.fromstring(file.read_text(encoding="utf-8"))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert ">relu</text>" in (tmp_path / "figures" / "pareto_fvu_a.1.svg").read_text(encoding="utf-8")
    assert ">relu</text>" not in sweep_figures.charts(made)[0].svg


def test_one_run_and_a_sweep_without_saes_have_a_sensible_page(made):
    alone = dataclasses.replace(
        made, runs=made.runs[:1], saes=made.saes[:1], options={}, n_seeds=1, stabilities=[], notes=[]
    )
    html = render_sweep(alone)
    assert "made-up: 1 run, 1 SAE<" in html
    assert 'id="options"' not in html
    assert 'id="stability"' not in html
    none = dataclasses.replace(made, saes=[], stabilities=[], notes=[])
    html = render_sweep(none)
    assert "there is nothing to rank" in html
    assert re.findall(r'<section id="(\w+)"', html) == ["overview", "runs", "glossary"]
    assert sweep_figures.charts(none) == []


def test_hostile_names_stay_text(made):
    evil = "<script>alert('x')</script>"
    sae = dataclasses.replace(made.saes[0], site=evil, architecture=evil, run=evil, options={evil: evil})
    run = dataclasses.replace(made.runs[0], key=evil, options={evil: evil}, metrics={evil: 1.0})
    other = dataclasses.replace(sae, options={evil: "b"}, setting="other")
    hostile = Sweep(evil, [run], [sae, other], {evil: [evil, "b"]}, 1, [], [evil])
    html = render_sweep(hostile)
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html


def test_equal_sweeps_give_equal_bytes(made, html):
    assert render_sweep(made, RANKED) == html
