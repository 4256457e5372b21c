"""The page itself: one HTML file that needs no server and asks for nothing, never larger than it may be."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mis_lab.core.errors import ConfigError
from mis_lab.core.files import write_text
from mis_lab.report import answer, figures, limits, sae_figures, sae_tables, tables, wording
from mis_lab.report.circuit_page import circuit_page
from mis_lab.report.config import ReportConfig
from mis_lab.report.data import ReportData, SiteSae
from mis_lab.report.gallery import (
    Shown,
    chosen_cards,
    galleries,
    image_sets,
    shown_ids,
    teasers,
)
from mis_lab.report.glossary import GLOSSARY
from mis_lab.report.images import SpriteSheet, data_uri, gradient_uri, thumbnail
from mis_lab.report.mis_page import beside_page

logger = logging.getLogger(__name__)

SECTIONS = (
    ("answer", "Answer"),
    ("run", "Run"),
    ("sae", "SAE"),
    ("units", "Units"),
    ("scores", "Scores"),
    ("comparison", "Comparison"),
    ("circuit", "Circuit"),
    ("faithfulness", "Faithfulness"),
    ("all-units", "All units"),
    ("glossary", "Glossary"),
    ("limits", "Limits"),
    ("reproduce", "Reproduce"),
)
SCENE_SIZE = (136, 102)
FEWEST_IMAGES = 3


def write_report(data: ReportData, path: Path, config: ReportConfig) -> Path:
    """Write the page to `path`.

    It shows `config.images` images of `config.units` units; when that would make it larger than `config.max_mib`,
    fewer images a unit, then fewer units, and says so.

    Raises:
        ConfigError: when not even a page without unit galleries is small enough.
    """
    allowed = config.max_mib * 2**20
    wanted = Shown(config.images, config.units)
    for shown in _ever_less(wanted):
        html = render(data, config, shown)
        size = len(html.encode("utf-8"))
        if size <= allowed:
            write_text(path, html)
            return path
        logger.info("the report with %d images of %d units a row takes %.1f MiB", *shown, size / 2**20)
    mib = f"{size / 2**20:.1f} MiB"
    raise ConfigError(
        f"report.max_mib={config.max_mib:g} is too small: the page takes {mib} without pictures of units",
        fix=f"Set report.max_mib={math.ceil(size / 2**20) + 1}.",
    )


def _ever_less(wanted: Shown) -> Iterator[Shown]:
    """First all, then fewer images, then fewer units, then fewer images again, at last no unit."""
    images, units = wanted
    yield wanted
    while images > FEWEST_IMAGES:
        images = max(FEWEST_IMAGES, images * 2 // 3)
        yield Shown(images, units)
    while units > 1:
        units = max(1, units * 2 // 3)
        yield Shown(images, units)
    while images > 1:
        images -= 1
        yield Shown(images, units)
    yield Shown(1, 0)


def render(data: ReportData, config: ReportConfig, shown: Shown) -> str:
    """The page as text; equal data give equal text."""
    sprites = SpriteSheet(config.image_px)
    content = (
        _frame(data)
        | _answer(data)
        | _run(data)
        | _saes(data)
        | _units(data, config, shown, sprites)
        | _scores(data)
        | beside_page(data.beside, data.mis.headline[0] if data.mis else "soft")
        | circuit_page(data, shown, sprites)
        | _all_units(data, shown)
    )
    return environment().get_template("report.html.j2").render(**content, sprite_rules=Markup(sprites.rules()))


def environment() -> Environment:
    """What templates are rendered with: style and script of every page, the glossary, numbers in words."""
    made = Environment(
        loader=PackageLoader("mis_lab.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(
        glossary=GLOSSARY,
        wording=wording,
        heat_gradient=gradient_uri(),
        chart_css=Markup(_resource("chart.css")),
        page_css=Markup(_resource("page.css")),
        script=Markup(_resource("page.js")),
        circuit_script=Markup(_resource("circuit.js")),
    )
    return made


def _frame(data: ReportData) -> dict[str, Any]:
    return {
        "data": data,
        "sections": SECTIONS,
        "made_by": data.run.versions.get("mis_lab", ""),
        "missing": {
            "sae": "the network was studied alone (sae=none), or the stage was not run.",
            "mis": "the stage mis was not run.",
            "comparison": "features and neurons were not both scored.",
            "circuit": "the stage circuit was not run.",
        },
    }


def _answer(data: ReportData) -> dict[str, Any]:
    rows = figures.headline_rows(data)
    measure, negatives = data.mis.headline if data.mis else ("soft", "random")
    return {
        "headline": answer.headline(data),
        "sentences": answer.sentences(data),
        "limits": limits.limits(data),
        "notes": data.notes,
        "difference_chart": figures.differences(rows) if rows else None,
        "headline_term": measure,
        "headline_measure": wording.named(wording.MEASURES, measure),
        "headline_negatives": wording.named(wording.NEGATIVES, negatives),
    }


def _run(data: ReportData) -> dict[str, Any]:
    scenes = [
        {
            "name": scene.name,
            "held_out": scene.held_out,
            "n_score": scene.n_score,
            "uri": data_uri(thumbnail(scene.image, *SCENE_SIZE), 72),
        }
        for scene in data.dataset.scenes
    ]
    return {"scenes": scenes}


def _saes(data: ReportData) -> dict[str, Any]:
    charts = []
    for sae in data.saes:
        if sae.density_f is not None:
            words = "by how often they fire; the bar at 0 are dead ones"
            charts.append({"site": sae.site, "svg": figures.density(sae), "term": "n_in_bin", "words": words})
    for sae in data.saes:
        if name := sae_figures.main_curve(sae.course):
            words = "in the course of training" + ("; dashed: held out" if sae.course.evaluations else "")
            term = "evaluation_fvu" if name in sae.course.evaluations else sae_figures.curve_term(name)
            svg = sae_figures.main_chart(sae.site, sae.course)
            charts.append({"site": sae.site, "svg": svg, "term": term, "words": words})
    has_classes = any(sae.selectivity for sae in data.saes)
    return {
        "sae_table": tables.sae_table(data.saes) if data.saes else None,
        "sae_charts": charts,
        "classes_table": sae_tables.classes_table(data.saes) if has_classes else None,
        "superposition_table": (
            sae_tables.superposition_table(data.saes) if any(sae.superposition for sae in data.saes) else None
        ),
        "sae_details": [_sae_details(sae) for sae in data.saes],
        "evaluated_on": wording.listed(list(dict.fromkeys(sae.evaluated_on for sae in data.saes if sae.evaluated_on))),
    }


def _sae_details(sae: SiteSae) -> dict[str, Any]:
    """What is folded away of the SAE of a site."""
    course, spaces = sae.course, sae.superposition
    dictionary = spaces.get("dictionary")
    classes = sae_figures.class_histograms(sae.site, sae.selectivity)
    return {
        "site": sae.site,
        "curves": [
            {"name": name, "term": sae_figures.curve_term(name), "svg": svg}
            for name, svg in sae_figures.training_curves(sae.site, course).items()
        ],
        "any_dead": course.fates.any,
        "fates": sae_figures.fates(sae.site, course) if course.fates.any else None,
        "n_evaluations": len(course.fates.dead),
        "revived": sae_tables.revived_table(sae.site, course),
        "classes": [{"words": wording.named(wording.KINDS, kind), "svg": svg} for kind, svg in classes.items()],
        "n_classes": sae.selectivity[0].n_classes if sae.selectivity else 0,
        "overlaps": (
            sae_figures.overlap_picture(sae.site, dictionary)
            if dictionary is not None and dictionary.cosines_kk is not None
            else None
        ),
        "n_pictured": len(dictionary.shown) if dictionary is not None else 0,
        "dimensionality": sae_figures.dimensionalities(sae.site, dictionary) if dictionary is not None else None,
        "spectrum": sae_figures.spectrum(sae.site, spaces) if spaces else None,
        "directions": [(sae_figures.DIRECTION_WORDS[what], sae_figures.DIRECTION_CSS[what]) for what in spaces],
    }


def _units(data: ReportData, config: ReportConfig, shown: Shown, sprites: SpriteSheet) -> dict[str, Any]:
    reduced = ""
    if shown != (config.images, config.units):
        reduced = (
            f"To stay below {config.max_mib:g} MiB this page shows {shown.images} of "
            f"{wording.plural(config.images, 'image')} a unit and {shown.units} of "
            f"{wording.plural(config.units, 'unit')} a "
            "row; report.max_mib raises the limit."
        )
    return {
        "galleries": galleries(data, shown, sprites),
        "teasers": teasers(data, shown, sprites),
        "image_sets": image_sets(data),
        "reduced": reduced,
    }


def _scores(data: ReportData) -> dict[str, Any]:
    panels, measures = [], []
    if data.mis is not None:
        for measure in ("soft", "hard"):
            axis = figures.score_range(data.scores, data.mis.negatives, measure)
            rows = []
            for site in data.sites:
                charts = [
                    {
                        "svg": figures.distributions(data.scores, site.path, negatives, measure, axis),
                        "words": wording.named(wording.NEGATIVES, negatives).capitalize(),
                    }
                    for negatives in data.mis.negatives
                    if any(one.of(negatives, measure).size for one in data.scores if one.site == site.path)
                ]
                if charts:
                    rows.append({"site": site.path, "charts": charts})
            if rows:
                panels.append({"measure": measure, "rows": rows})
                measures.append({"key": measure, "words": wording.named(wording.MEASURES, measure)})
    return {
        "score_panels": panels,
        "score_measures": measures,
        "median_table": tables.median_table(data.scores, data.mis.negatives) if data.mis and data.scores else None,
        "status_table": tables.status_table(data.scores) if data.scores else None,
        **_comparisons(data),
    }


def _comparisons(data: ReportData) -> dict[str, Any]:
    """The headline's table in front, the others folded away."""
    found = tables.comparison_tables(data.comparisons)
    return {"main_comparison": found[0] if found else None, "comparison_tables": found[1:]}


def _all_units(data: ReportData, shown: Shown) -> dict[str, Any]:
    if data.mis is None or not data.scores:
        return {"units_columns": None, "units_data": None, "n_units": 0, "n_listed": 0}
    columns = [tables.Column(label=label) for label in ("Site", "Kind", "Unit", "Status")]
    columns.append(tables.Column("n_active"))
    for negatives in data.mis.negatives:
        for measure in ("soft", "hard"):
            label = f"{GLOSSARY[measure].label}, {negatives}"
            columns.append(tables.Column(measure, label))
    n_units = sum(len(one.numbers) for one in data.scores)
    return {
        "units_columns": columns,
        "units_data": Markup(tables.units_json(data, shown_ids(chosen_cards(data, shown)))),
        "n_units": n_units,
        "n_listed": min(n_units, tables.MAX_UNIT_ROWS),
    }


def _resource(name: str) -> str:
    return files("mis_lab.report").joinpath(f"templates/{name}").read_text(encoding="utf-8")
