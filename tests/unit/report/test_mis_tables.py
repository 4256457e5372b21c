"""Tables of what stands beside scores hold the numbers that they are given."""

from __future__ import annotations

import numpy as np

from mis_lab.mis.discovery import InterpretableUnits
from mis_lab.report import mis_tables
from mis_lab.report.mis_page import beside_page


def cell_texts(table, row: int) -> list[str]:
    return [cell.text for cell in table.rows[row]]


def test_further_scores_are_medians_above_the_base_rate(data) -> None:
    (place, scores), *_ = data.beside.further.items()
    table = mis_tables.further_table({place: scores})
    coherence = float(np.median(scores.coherence.numpy())) - scores.base_rate
    assert f"{coherence:+.3f}" in cell_texts(table, 0)
    assert len(table.columns) == len(table.rows[0])


def test_a_row_a_site_and_kind_and_columns_for_negatives(data) -> None:
    counted = [
        InterpretableUnits("a", "feature", "random", 10, 8, 4, 0.05, 1.0),
        InterpretableUnits("a", "feature", "bottom", 10, 8, 2, 0.05, 1.0),
        InterpretableUnits("a", "neuron", "random", 4, 4, 4, 0.05, 1.0),
        InterpretableUnits("a", "neuron", "bottom", 4, 4, 0, 0.05, 1.0),
    ]
    table = mis_tables.interpretable_table(counted)
    assert [column.label for column in table.columns[3:]] == [
        "Of the tested, random",
        "Of all, random",
        "Of the tested, bottom",
        "Of all, bottom",
    ]
    first = " ".join(cell_texts(table, 0)).replace("\u202f", "")
    assert "4 of 8 (50%)" in first
    assert "40%" in first
    assert cell_texts(table, 1)[0] == "a"


def test_pairs_sites_and_noise_say_what_was_found(data) -> None:
    pairs = mis_tables.pairs_table(data.beside.pairs)
    assert len(pairs.rows) == len(data.beside.pairs)
    one = next(iter(data.beside.pairs.values()))
    assert f"{one.mean_difference.estimate:+.3f}".replace("-", "−") in cell_texts(pairs, 0)
    sites = mis_tables.sites_table(data.beside.over_sites)
    assert cell_texts(sites, 0)[-1] == "0.250"
    noise = mis_tables.noise_table(data.beside.noise)
    (first, *_) = data.beside.noise.values()
    assert f"{first.within_sd:.3f}" in cell_texts(noise, 0)


def test_charts_stand_by_negatives_so_that_a_row_holds_all_sites(data) -> None:
    content = beside_page(data.beside, "soft")
    words = [chart.words for chart in content["paired_charts"]]
    assert words == sorted(words, key=lambda told: told != "random negatives")
    assert [chart.site for chart in content["course_charts"][:3]] == [site.path for site in data.sites]
    assert {panel.key for panel in content["curve_panels"]} == {
        "hardness-random",
        "hardness-bottom",
        "quantile-random",
        "quantile-bottom",
    }
