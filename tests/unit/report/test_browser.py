"""The page in a real browser: nothing fails, nothing is asked for, and what can be pressed works."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

pytestmark = pytest.mark.needs("chromium")


@pytest.fixture(scope="module")
def browser(chromium):
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def opened(browser, page_path):
    """(page, messages, requests) of a wide window."""
    page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
    messages, requests = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_path.as_uri())
    yield page, messages, requests
    page.close()


def test_the_page_opens_in_silence_and_asks_for_nothing(opened, page_path):
    _, messages, requests = opened
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [page_path.as_uri()]


@pytest.mark.parametrize("width", [1280, 768, 420, 320])
def test_nothing_is_wider_than_the_window(opened, width):
    page, _, _ = opened
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_viewport_size({"width": 1280, "height": 800})


def test_a_click_on_a_heading_sorts_by_the_value_not_the_text(opened):
    page, _, _ = opened
    header = page.locator("#table-status th", has_text="Units").first
    read = "[...document.querySelectorAll('#table-status tbody tr')].map((row) => Number(row.cells[2].dataset.sort))"
    header.locator("button").click()
    values = page.evaluate(read)
    assert values == sorted(values, reverse=True)
    assert header.get_attribute("aria-sort") == "descending"
    header.locator("button").press("Enter")
    values = page.evaluate(read)
    assert values == sorted(values)
    assert header.get_attribute("aria-sort") == "ascending"


def test_the_table_of_all_units_pages_filters_and_sorts_missing_last(opened, data):
    page, _, _ = opened
    body = page.locator("#table-units tbody tr")
    assert body.count() == 25
    best = max(float(np.nanmax(one.scores["random"]["soft"])) for one in data.scores)
    assert body.first.locator("td").nth(5).inner_text() == f"{best:.3f}"
    assert page.locator("#units-before").is_disabled()
    page.locator("#units-after").click()
    assert page.locator("#units-where").inner_text().startswith("26 to 50 of ")
    page.locator("#filter-status").select_option(label="dead")
    dead = sum(one.status.count("dead") for one in data.scores)
    assert page.locator("#units-where").inner_text().endswith(f"of {dead}")
    assert body.first.locator("td").nth(5).inner_text() == "–"
    page.locator("#filter-status").select_option(label="all")
    page.locator("#table-units th button").nth(5).click()
    lowest = min(float(np.nanmin(one.scores["random"]["soft"])) for one in data.scores)
    assert body.first.locator("td").nth(5).inner_text() == f"{lowest:.3f}"


def tile_colours(page, selector: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.locator(selector).first.screenshot())).convert("RGB"), dtype=float)


def test_heat_maps_appear_on_hovering_and_by_the_button(opened):
    page, _, _ = opened
    page.locator("#units .card .tile").first.scroll_into_view_if_needed()
    opacity = "getComputedStyle(document.querySelector('#units .card .tile i')).opacity"
    still = "() => document.getAnimations().every((one) => one.playState === 'finished')"
    page.mouse.move(0, 0)
    page.wait_for_function(still)
    assert page.evaluate(opacity) == "0"
    plain = tile_colours(page, "#units .card .tile")
    page.locator("#units .card .tile").first.hover()
    page.wait_for_function(still)
    assert page.evaluate(opacity) == "1"
    assert np.abs(tile_colours(page, "#units .card .tile") - plain).mean() > 5
    page.mouse.move(0, 0)
    button = page.locator("#units [data-heat]")
    button.click()
    page.mouse.move(0, 0)
    page.wait_for_function(still)
    assert page.evaluate(opacity) == "1"
    assert button.get_attribute("aria-pressed") == "true"
    assert page.locator("#circuit [data-heat]").first.get_attribute("aria-pressed") == "true"
    button.click()
    page.wait_for_function(still)
    assert page.evaluate(opacity) == "0"


def test_each_tile_shows_its_own_image(opened, data):
    page, _, _ = opened
    card = next(one for one in data.units if one.pick == "best")
    title = page.locator("#units .card .tile").first.get_attribute("title")
    assert card.images["top"][0].image_id in title
    page.mouse.move(0, 0)
    for place in (0, 4, 8):
        tile = page.locator("#units .card .tiles").first.locator(".tile").nth(place)
        seen = np.asarray(Image.open(io.BytesIO(tile.screenshot())).convert("RGB").resize((8, 8)), dtype=float)
        true = np.asarray(Image.fromarray(card.images["top"][place].image).resize((8, 8)), dtype=float)
        assert np.abs(seen - true).mean() < 22, place
        others = [one.image for at, one in enumerate(card.images["top"]) if at != place]
        distances = [
            np.abs(seen - np.asarray(Image.fromarray(one).resize((8, 8)), dtype=float)).mean() for one in others
        ]
        assert np.abs(seen - true).mean() <= min(distances)


def test_least_active_images_one_site_and_the_hard_score_can_be_chosen(opened):
    page, _, _ = opened
    page.locator("#units .segments button", has_text="Least active").click()
    assert not page.locator("#units .card .set-top").first.is_visible()
    assert page.locator("#units .card .set-bottom").first.is_visible()
    page.locator("#units .segments button", has_text="blocks.4").click()
    assert [block.is_visible() for block in page.locator("#units [data-site]").all()] == [False, True, False]
    hidden = page.locator("#units [data-site='blocks.2'] .card").first.get_attribute("id")
    page.evaluate(f"location.hash = '{hidden}'")
    page.wait_for_function(f"document.getElementById('{hidden}').offsetParent !== null")
    page.locator("#scores .segments button", has_text="hard MIS").click()
    assert [block.is_visible() for block in page.locator("#scores [data-measure]").all()] == [False, True]


def seen_edges(page) -> list[dict[str, str]]:
    return page.evaluate(
        "[...document.querySelectorAll('svg.graph .edge')].filter((one) => getComputedStyle(one).display !== 'none')"
        ".map((one) => ({from: one.dataset.from, to: one.dataset.to, rank: Number(one.dataset.rank)}))"
    )


def test_a_node_of_the_circuit_shows_its_images_and_its_edges_and_dims_the_rest(opened, data):
    page, _, _ = opened
    place, node = next(
        (place, node) for place, node in enumerate(data.circuit.nodes) if node.site == "blocks.4" and node.images
    )
    page.mouse.move(0, 0)
    target = page.locator(f"svg.graph .graph-node[data-node='{place}']")
    target.scroll_into_view_if_needed()
    target.hover()
    card = page.locator(".graph-card")
    assert card.is_visible()
    assert f"feature {node.number}" in card.inner_text()
    assert f"MIS {float(node.mis.estimate):.2f} [" in card.inner_text()
    assert card.locator(".tiles").count() == 2  # images, and the same with heat-maps
    opacity = "(one) => getComputedStyle(one).opacity"
    assert [tile.evaluate(opacity) for tile in card.locator(".tile i").all()] == ["0"] * 5 + ["1"] * 5
    edges = data.circuit_details.edges
    near = {
        (str(e.source), "goal" if e.target is None else str(e.target)) for e in edges if place in (e.source, e.target)
    }
    found = page.evaluate("[...document.querySelectorAll('.edge.near')].map((e) => [e.dataset.from, e.dataset.to])")
    assert {tuple(pair) for pair in found} == near
    assert near <= {(edge["from"], edge["to"]) for edge in seen_edges(page)}  # also those that are not seen at first
    page.wait_for_function("() => document.getAnimations().every((one) => one.playState === 'finished')")
    stranger = page.locator("svg.graph .graph-node:not(.near)").first
    assert float(stranger.evaluate(opacity)) < 0.5
    page.mouse.move(0, 0)
    assert not card.is_visible()
    target.focus()
    assert card.is_visible()
    target.press("Escape")
    card.wait_for(state="hidden")


def slide(page, selector: str, value: int) -> None:
    page.locator(selector).evaluate(
        "(one, value) => { one.value = value; one.dispatchEvent(new Event('input')); }", value
    )


def test_sliders_choose_how_many_edges_and_nodes_are_seen(opened, data):
    page, _, _ = opened
    edges, n_nodes = data.circuit_details.edges, len(data.circuit.nodes)
    page.mouse.move(0, 0)
    at_first = seen_edges(page)
    assert 0 < len(at_first) < len(edges)
    assert page.locator("#graph-edges-told").inner_text() == f"{len(at_first)} of {len(edges)}"
    slide(page, "#graph-edges", 100)
    assert len(seen_edges(page)) == len(edges)
    assert page.locator("#graph-first").get_attribute("aria-pressed") == "false"
    slide(page, "#graph-edges", 25)
    assert sorted(edge["rank"] for edge in seen_edges(page)) == list(range(1, round(len(edges) / 4) + 1))
    slide(page, "#graph-edges", 100)
    slide(page, "#graph-nodes", 6)
    assert page.locator("svg.graph .graph-node:visible").count() == 6
    kept = [e for e in edges if e.source < 6 and (e.target is None or e.target < 6)]
    assert len(seen_edges(page)) == len(kept)
    slide(page, "#graph-nodes", n_nodes)
    page.locator("#graph-first").click()
    assert seen_edges(page) == at_first


def test_nodes_are_coloured_by_score_on_demand(opened, data):
    page, _, _ = opened
    scored = [
        (place, float(node.mis.estimate)) for place, node in enumerate(data.circuit.nodes) if node.mis is not None
    ]
    (low, _), (high, _) = min(scored, key=lambda one: one[1]), max(scored, key=lambda one: one[1])

    def colours() -> list[str]:
        fill = "(one) => getComputedStyle(one).fill"
        return [page.locator(f".graph-node[data-node='{place}'] .disc").evaluate(fill) for place in (low, high)]

    before = colours()
    page.locator("[data-sets='graph-colour'] button", has_text="MIS").click()
    assert page.locator(".mis-key").is_visible()
    assert colours() != before
    assert colours()[0] != colours()[1]
    assert page.locator(".graph-node .disc.error").first.evaluate("(one) => getComputedStyle(one).fill") == "none"
    page.locator("[data-sets='graph-colour'] button", has_text="effect").click()
    assert colours() == before


def luminance(page) -> float:
    text = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return float(np.mean([int(part) for part in text[4:-1].split(",")]))


def test_light_and_dark_follow_the_system_and_the_button(opened):
    page, _, _ = opened
    assert luminance(page) > 200
    page.emulate_media(color_scheme="dark")
    assert luminance(page) < 60
    button = page.locator(".theme")
    button.click()
    assert (button.inner_text(), luminance(page) > 200) == ("Light", True)
    page.emulate_media(color_scheme="light")
    button.click()
    assert (button.inner_text(), luminance(page) < 60) == ("Dark", True)
    page.emulate_media(media="print")
    assert luminance(page) > 200
    assert not page.locator("nav.sections").is_visible()
    page.emulate_media(media="screen")
    button.click()
    assert (button.inner_text(), luminance(page) > 200) == ("Auto", True)


def test_without_script_everything_but_the_long_table_is_there(browser, page_path):
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.goto(page_path.as_uri())
    assert not page.locator(".controls").first.is_visible()
    assert page.locator("#units .card").count() == 72
    assert page.locator("#scores [data-measure='soft']").is_visible()
    assert page.locator("noscript").count() == 1
    assert page.locator("svg.graph .graph-node").first.is_visible()
    assert not page.locator(".graph-card").is_visible()
    context.close()
