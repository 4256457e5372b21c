"""Tables hold the numbers, in an order that a script can sort by."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from mis_lab.core.intervals import Interval
from mis_lab.report import tables
from mis_lab.report.data import KindScores


def column(table: tables.Table, name: str) -> list[tables.Cell]:
    at = next(place for place, one in enumerate(table.columns) if name in (one.term, one.label))
    return [row[at] for row in table.rows]


def test_every_row_has_a_cell_a_column(data):
    found = [
        tables.sae_table(data.saes),
        tables.status_table(data.scores),
        tables.median_table(data.scores, ["random", "bottom"]),
        *tables.comparison_tables(data.comparisons),
    ]
    assert len(found) == 4
    for table in found:
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}


def test_what_nobody_measured_has_no_column_and_what_is_missing_here_a_dash(data):
    first, second, _ = data.saes
    table = tables.sae_table(
        [dataclasses.replace(first, kl=None, fvu_held_out=None), dataclasses.replace(second, kl=None)]
    )
    assert "kl" not in {one.term for one in table.columns}
    assert [cell.text for cell in column(table, "fvu_held_out")] == ["–", "0.30"]
    assert [cell.sort for cell in column(table, "explained_variance")] == [1 - first.fvu, 1 - second.fvu]


def test_statuses_are_counted(data):
    features = data.scores[0]
    table = tables.status_table(data.scores)
    counted = {one.term: row for one, row in zip(table.columns, zip(*table.rows, strict=True), strict=True)}
    assert counted["status_dead"][0].sort == features.status.count("dead")
    assert counted["status_ok"][0].text.startswith(f"{features.status.count('ok')} (")
    assert counted["status_dead"][1].text == "0"
    for row in table.rows:
        assert sum(cell.sort for cell in row[3:]) == row[2].sort


def test_medians_are_of_the_scored_units(data):
    table = tables.median_table(data.scores, ["random"])
    assert [cell.sort for cell in column(table, "soft")] == pytest.approx(
        [float(np.nanmedian(one.scores["random"]["soft"])) for one in data.scores]
    )


def test_a_comparison_says_who_is_ahead_and_whether_beyond_these_images(data):
    row = data.comparisons[0]
    sure = dataclasses.replace(
        row, p_holm=0.001, mean_difference=Interval(0.1, 0.05, 0.15), mean_difference_groups=Interval(0.1, 0.01, 0.2)
    )
    unsure = dataclasses.replace(sure, mean_difference_groups=None)
    unclear = dataclasses.replace(sure, p_holm=0.3)
    (table,) = tables.comparison_tables([sure, unsure, unclear])
    assert [(cell.text, cell.more) for cell in column(table, "verdict")] == [
        ("SAE features ahead", ""), ("SAE features ahead", "these images only"), ("unclear", ""),
    ]  # fmt: skip
    assert [cell.text for cell in column(table, "mean_difference_groups")] == ["+0.100", "–", "+0.100"]
    assert column(table, "mean_difference")[0].more == "[0.050, 0.150]"


def test_measures_and_pairs_have_tables_of_their_own(data):
    row = data.comparisons[0]
    found = tables.comparison_tables(
        [row, dataclasses.replace(row, measure="hard"), dataclasses.replace(row, b="permuted"), row]
    )
    assert [len(table.rows) for table in found] == [2, 1, 1]
    assert len({table.name for table in found}) == 3
    assert "permuted features" in found[2].caption


def test_all_units_are_listed_with_their_scores_and_cards(data):
    content = json.loads(tables.units_json(data, {("blocks.2", "feature", 3): "unit-3"}))
    assert content["total"] == len(content["rows"]) == sum(len(one.numbers) for one in data.scores)
    first = data.scores[0]
    block, unit, status, n_active, soft, *_ = content["rows"][3]
    assert (content["blocks"][block][:2], unit) == (["blocks.2", "feature"], 3)
    assert content["statuses"][status] == first.status[3].replace("_", " ")
    assert n_active == first.n_active[3]
    value = first.scores["random"]["soft"][3]
    assert soft is None if np.isnan(value) else soft == pytest.approx(value, abs=5e-4)
    assert content["cards"] == {"blocks.2|feature|3": "unit-3"}
    assert content["columns"][content["order"] - 4] == "soft MIS, random"


def test_the_list_of_units_stays_light_and_keeps_every_kind(data, monkeypatch):
    monkeypatch.setattr(tables, "MAX_UNIT_ROWS", 500)
    content = json.loads(tables.units_json(data, {}))
    kept = np.bincount([row[0] for row in content["rows"]])
    total = np.array([len(one.numbers) for one in data.scores])
    assert 480 <= kept.sum() <= 500
    assert kept == pytest.approx(total * 500 / total.sum(), abs=1)


def test_a_hostile_name_cannot_leave_the_script_element(data):
    evil = KindScores("</script><script>alert(1)</script>", "neuron", np.arange(1), ["ok"], np.ones(1), {})
    sites = [dataclasses.replace(data.sites[0], path=evil.site)]
    text = tables.units_json(dataclasses.replace(data, scores=[evil], sites=sites), {})
    assert "<" not in text
    assert json.loads(text)["blocks"][0][0] == evil.site
