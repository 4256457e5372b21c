"""The page of a sweep: its SAEs ranked, their trade-offs, what the options do, how alike seeds are; one HTML file.

Charts also stand beside it as SVG files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mis_lab import __version__
from mis_lab.core.files import write_text
from mis_lab.report.charts import standalone
from mis_lab.report.glossary import GLOSSARY
from mis_lab.report.page import environment
from mis_lab.report.sweep import MEASURES, RANKED, Ranking, Sweep, SweptSae, as_number, rank
from mis_lab.report.sweep_figures import SweepChart, charts, label
from mis_lab.report.tables import Cell, Column, Table, number_cell, word_cell
from mis_lab.report.wording import NOTHING, count, fixed, listed, number, percent, plural

PAGE, FIGURES = "sweep.html", "figures"
SECTIONS = {
    "overview": "Overview",
    "ranking": "Ranking",
    "pareto": "Trade-offs",
    "options": "Options",
    "course": "Training",
    "densities": "Densities",
    "stability": "Stability",
    "runs": "Runs",
    "glossary": "Glossary",
}
PERCENT = ("dead_share", "agreement")
MOST_COLUMNS = 24  # runs side by side in the table of all numbers
MOST_NUMBERS = 400


def write_sweep(sweep: Sweep, folder: Path, measures: Sequence[str] = RANKED) -> Path:
    """Write the page and its figures into `folder`.

    Args:
        measures: to rank by, names of :data:`mis_lab.report.sweep.MEASURES`.

    Raises:
        ConfigError: when a measure is unknown.
    """
    html = render_sweep(sweep, measures)
    for chart in charts(sweep, with_legend=True):
        write_text(folder / FIGURES / f"{_file_name(chart.name)}.svg", standalone(chart.svg))
    write_text(folder / PAGE, html)
    return folder / PAGE


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.=-]+", "_", name)


def render_sweep(sweep: Sweep, measures: Sequence[str] = RANKED) -> str:
    """The page as text; equal data give equal text."""
    rankings = {site: rank(sweep.at(site), measures) for site in sweep.sites}
    drawn = charts(sweep)
    shown = {chart.section for chart in drawn} | {"overview", "runs", "glossary"}
    shown |= {"ranking"} if sweep.saes else set()
    shown |= {"stability"} if sweep.stabilities or sweep.notes else set()
    template = environment().get_template("sweep.html.j2")
    content = {
        "sweep": sweep,
        "sections": [(key, title) for key, title in SECTIONS.items() if key in shown],
        "made_by": __version__,
        "facts": _facts(sweep),
        "lead": _lead(sweep, rankings),
        "rankings": [ranking_table(site, one, sweep) for site, one in rankings.items()],
        "uncounted": _uncounted(rankings),
        "charts": {section: _blocks(drawn, section) for section in ("pareto", "options", "course", "densities")},
        "stability_table": stability_table(sweep) if sweep.stabilities else None,
        "runs_table": runs_table(sweep),
        "numbers_table": numbers_table(sweep),
    }
    # Rendered twice: the glossary holds the entries that the page names.
    text = template.render(**content, terms=[])
    named = set(re.findall(r'data-term="(\w+)"', text))
    return template.render(**content, terms=[key for key in GLOSSARY if key in named])


def _facts(sweep: Sweep) -> list[tuple[str, str]]:
    facts = [("n_runs", count(len(sweep.runs))), ("n_saes", count(len(sweep.saes)))]
    return [*facts, ("n_sites", count(len(sweep.sites))), ("n_seeds", count(sweep.n_seeds))]


def _lead(sweep: Sweep, rankings: dict[str, Ranking]) -> list[str]:
    """What to know first, in sentences."""
    told = []
    if sweep.options:
        options = [f"{name} ({', '.join(values)})" for name, values in sweep.options.items()]
        told.append(f"The runs differ in {listed(options)}{' and in their seed' if sweep.n_seeds > 1 else ''}.")
    elif len(sweep.runs) > 1:
        told.append("The runs differ in their seed alone." if sweep.n_seeds > 1 else "No option differs between runs.")
    for site, one in rankings.items():
        if len(one.saes) > 1 and np.isfinite(one.final_rank_s[0]):
            best = [sae for sae, place in zip(one.saes, one.final_rank_s, strict=True) if place == one.final_rank_s[0]]
            words = listed([sae_words(sae) for sae in best[:3]]) + (" and more" if len(best) > 3 else "")
            n = sum(one.counted)
            told.append(
                f"At {site}, {words} {'rank' if len(best) > 1 else 'ranks'} first by {plural(n, 'measure')} taken "
                f"together (mean rank {number(float(one.mean_rank_s[0]))} of {len(one.saes)})."
            )
    return told


def sae_words(sae: SweptSae) -> str:
    """An SAE by its options and seed."""
    options = [f"{name}={value}" for name, value in sae.options.items() if value]
    return " ".join([*(options or [sae.architecture]), f"seed={sae.seed}"])


def _uncounted(rankings: dict[str, Ranking]) -> list[str]:
    labels = [
        label(measure)
        for one in rankings.values()
        for measure, counted in zip(one.measures, one.counted, strict=True)
        if not counted
    ]
    return list(dict.fromkeys(labels))


def ranking_table(site: str, one: Ranking, sweep: Sweep) -> Table:
    """SAEs of a site, the best first: final rank, mean rank, and every measure with its rank below."""
    columns = [Column("final_rank"), Column("mean_rank"), Column(label="Run")]
    columns += [] if "sae" in sweep.options else [Column(label="SAE")]
    columns += [Column(label=option) for option in sweep.options] + [Column(label="Seed")]
    for measure in one.measures:
        arrow = "↑" if MEASURES[measure].high_is_good else "↓"
        columns.append(Column(MEASURES[measure].term, f"{label(measure)} {arrow}"))
    rows = []
    for place, sae in enumerate(one.saes):
        final, mean = float(one.final_rank_s[place]), float(one.mean_rank_s[place])
        cells = [
            number_cell(final, NOTHING if final != final else f"{final:g}"),
            number_cell(mean, number(mean)),
            word_cell(sae.run[:8], "word code"),
            *([] if "sae" in sweep.options else [word_cell(sae.architecture)]),
            *(_option_cell(sae.options[option]) for option in sweep.options),
            number_cell(sae.seed, str(sae.seed)),
        ]
        for at, measure in enumerate(one.measures):
            value, its_rank = float(one.values_sm[place, at]), float(one.ranks_sm[place, at])
            text = percent(value, 1) if measure in PERCENT else number(value)
            cells.append(number_cell(value, text)._replace(more=f"rank {its_rank:g}" if its_rank == its_rank else ""))
        rows.append(cells)
    return Table(f"table-ranking-{site}", f"SAEs at {site}, the best by mean rank first", columns, rows)


def _option_cell(value: str) -> Cell:
    size = as_number(value)
    return Cell(value or NOTHING, value if size is None else size, "word" if size is None else "num")


def _blocks(drawn: Sequence[SweepChart], section: str) -> list[dict[str, Any]]:
    """Charts of a section by heading, with one legend for each."""
    of_section = [chart for chart in drawn if chart.section == section]
    blocks = []
    for name in dict.fromkeys(chart.block for chart in of_section):
        of_block = [chart for chart in of_section if chart.block == name]
        blocks.append({"name": name, "charts": of_block, "legend": of_block[0].legend})
    return blocks


def stability_table(sweep: Sweep) -> Table:
    """How alike the dictionaries of several seeds are."""
    columns = [Column(label="Site"), *([] if "sae" in sweep.options else [Column(label="SAE")])]
    columns += [Column(label=option) for option in sweep.options]
    columns += [Column("n_seeds"), Column("mcc"), Column("recovered_share")]
    rows = []
    for one in sweep.stabilities:
        first, found = one.saes[0], one.found
        low, high = found.mcc_range
        spread = f"{fixed(low, 3)} to {fixed(high, 3)}" if len(found.mcc_by_pair) > 1 else ""
        rows.append(
            [
                word_cell(one.site, "word code"),
                *([] if "sae" in sweep.options else [word_cell(first.architecture)]),
                *(_option_cell(first.options[option]) for option in sweep.options),
                number_cell(len(one.saes), count(len(one.saes))),
                number_cell(found.mcc, fixed(found.mcc, 3))._replace(more=spread),
                number_cell(found.recovered, percent(found.recovered)),
            ]
        )
    return Table("table-stability", "Dictionaries that differ in their seed alone", columns, rows)


def runs_table(sweep: Sweep) -> Table:
    """The runs, with what they were asked for."""
    columns = [Column(label="Run"), *(Column(label=option) for option in sweep.options), Column(label="Seed")]
    columns += [Column("headline"), Column("seconds")]
    rows = [
        [
            word_cell(run.key, "word code"),
            *(_option_cell(run.options[option]) for option in sweep.options),
            number_cell(run.seed, str(run.seed)),
            number_cell(run.headline, fixed(run.headline, 3, signed=True)),
            number_cell(run.seconds, number(run.seconds)),
        ]
        for run in sweep.runs
    ]
    return Table("table-runs", "The runs", columns, rows)


def numbers_table(sweep: Sweep) -> Table | None:
    """Numbers that differ between runs, a row each, a column a run; None for a single run."""
    runs = sweep.runs[:MOST_COLUMNS]
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    differing = [name for name in names if len({run.metrics.get(name) for run in runs}) > 1] if len(runs) > 1 else names
    if not differing:
        return None
    rows = [
        [
            word_cell(name, "word code"),
            *(number_cell(run.metrics.get(name), number(run.metrics.get(name))) for run in runs),
        ]
        for name in differing[:MOST_NUMBERS]
    ]
    told = "Numbers in which runs differ" if len(runs) > 1 else "Numbers of the run"
    left_out = len(differing) > MOST_NUMBERS or len(runs) < len(sweep.runs)
    caption = told + (" (not all are shown; runs.csv has them)" if left_out else "")
    columns = [Column(label="Number"), *(Column("run_number", run.key[:8]) for run in runs)]
    return Table("table-numbers", caption, columns, rows)
