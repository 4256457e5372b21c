"""Which units are shown, how often, and what is said of them."""

from __future__ import annotations

import collections
import dataclasses

import pytest

from mis_lab.report.circuit_page import circuit_columns
from mis_lab.report.gallery import Shown, card_id, chosen_cards, galleries, image_sets, teasers
from mis_lab.report.images import SpriteSheet


def test_at_most_so_many_units_a_kind_and_pick_and_none_twice(data):
    cards = chosen_cards(data, Shown(9, 2))
    counts = collections.Counter((card.site, card.kind, card.pick) for card in cards)
    assert set(counts.values()) == {2}
    assert len(counts) == 3 * 2 * 3
    units = [(card.site, card.kind, card.number) for card in cards]
    assert len(set(units)) == len(units)


def test_a_unit_that_is_both_best_and_worst_is_shown_once(data):
    best = next(card for card in data.units if card.pick == "best")
    twice = dataclasses.replace(data, units=[best, dataclasses.replace(best, pick="worst")])
    assert [card.pick for card in chosen_cards(twice, Shown(9, 4))] == ["best"]


def test_tiles_have_the_places_of_a_strip_and_say_what_they_are(data):
    gallery = galleries(data, Shown(4, 1), SpriteSheet(8))[0]
    card = gallery.picks[0].rows[0][0]
    top = card.sets[0]
    assert [tile.x for tile in top.tiles] == ["0%", "33.33%", "66.67%", "100%"]
    source = next(one for one in data.units if card_id(one.site, one.kind, one.number) == card.id)
    image = source.images["top"][0]
    assert image.image_id in top.tiles[0].title
    assert top.alt.startswith(f"4 images that activate it most, of feature {source.number} of blocks.2: ")
    assert sum(int(part.split("(")[1][:-1]) if "(" in part else 1 for part in top.alt.split(": ")[1].split(", ")) == 4


def test_sites_picks_and_kinds_come_in_their_order(data):
    found = galleries(data, Shown(2, 1), SpriteSheet(8))
    assert [gallery.site for gallery in found] == ["blocks.2", "blocks.4", "blocks.6"]
    assert [pick.words for pick in found[0].picks] == ["Best", "Random", "Worst"]
    assert [row[0].css for row in found[0].picks[0].rows] == ["k-feature", "k-neuron"]


def test_a_unit_without_score_or_heat_map_still_has_a_card(data):
    card = data.units[0]
    bare = [dataclasses.replace(image, heat=None) for image in card.images["top"]]
    poor = dataclasses.replace(
        data, units=[dataclasses.replace(card, scores={}, status="too_rare", images={"top": bare})]
    )
    shown = galleries(poor, Shown(9, 4), SpriteSheet(8))[0].picks[0].rows[0][0]
    assert (shown.status, list(shown.scores), shown.sets[0].heat) == ("too rare", [], None)
    assert image_sets(poor) == [("top", "Top images")]
    assert image_sets(data) == [("top", "Top images"), ("bottom", "Least active")]


def test_teasers_are_the_best_feature_of_every_site_or_neurons_without_an_sae(data):
    assert [card.title.split()[0] for card in teasers(data, Shown(2, 1), SpriteSheet(8))] == ["feature"] * 3
    neurons = dataclasses.replace(data, units=[card for card in data.units if card.kind == "neuron"])
    assert [card.title.split()[0] for card in teasers(neurons, Shown(2, 1), SpriteSheet(8))] == ["neuron"] * 3


def test_circuit_columns_follow_the_network_and_nodes_their_effects(data):
    columns = circuit_columns(data.circuit, SpriteSheet(8), 3)
    assert [column.site for column in columns] == ["blocks.2", "blocks.4", "blocks.6"]
    assert sum(len(column.nodes) for column in columns) == len(data.circuit.nodes)
    for column in columns:
        sizes = [abs(float(node.effect.split(" ")[0].replace("−", "-"))) for node in column.nodes]
        assert sizes == sorted(sizes, reverse=True)
        errors = [node for node in column.nodes if node.title == "error"]
        assert [node.set for node in errors] == [None]
        assert all(len(node.set.tiles) == 3 for node in column.nodes if node.set)


@pytest.mark.parametrize("site", ["layer1.0", "features/3 <b>", 'a"b'])
def test_element_ids_are_safe(site):
    assert card_id(site, "feature", 3).replace("-", "").replace(".", "").replace("_", "").isalnum()
