"""The page is one file, whole, small enough, and says what it leaves out."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from mis_lab.core.errors import ConfigError
from mis_lab.report.config import ReportConfig
from mis_lab.report.gallery import Shown
from mis_lab.report.glossary import GLOSSARY
from mis_lab.report.page import SECTIONS, render, write_report

NO_END = {"meta", "link", "img", "br", "input"}
SMALL = ReportConfig(units=1, images=3, image_px=16)
# Column names that are no numbers.
PLAIN = {
    *("Measure", "Site", "Kind", "Unit", "Status", "SAE", "Negatives", "Circuits", "Directions", "Nodes"),
    *("Beside", "They are"),
}


class Reader(HTMLParser):
    """Elements in order; complains about what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text_of: dict[int, str] = {}
        self._open: list[tuple[str, int]] = []
        self.feed(text)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in NO_END:
            self._open.append((tag, len(self.elements) - 1))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        opened, _ = self._open.pop()
        assert opened == tag, f"<{opened}> closed by </{tag}> at {self.getpos()}"

    def handle_data(self, text):
        for _, at in self._open:
            self.text_of[at] = self.text_of.get(at, "") + text

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page(data, config=SMALL) -> str:
    return render(data, config, Shown(config.images, config.units))


@pytest.fixture(scope="module")
def html(page_path) -> str:
    return page_path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reader(html) -> Reader:
    return Reader(html)


def test_the_page_is_whole_and_well_formed(html, reader):
    assert html.startswith("<!doctype html>")
    assert [attributes["id"] for attributes in reader.all("section")] == [name for name, _ in SECTIONS]
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert len(reader.all("h1")) == 1
    targets = {attributes["href"][1:] for attributes in reader.all("a") if attributes["href"].startswith("#")}
    assert targets <= set(ids)
    assert "{{" not in html
    assert "{%" not in html


def test_the_page_asks_for_nothing(html, reader):
    policy = next(attributes["content"] for attributes in reader.all("meta") if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'; img-src data:")
    assert not re.search(r"https?://", html)
    for _, attributes in reader.elements:
        for name in ("src", "href", "data", "poster", "srcset"):
            if name in attributes:
                assert attributes[name].startswith(("data:", "#")), attributes
    assert set(re.findall(r"url\(([a-z]+:)", html)) == {"data:"}
    assert "@import" not in html
    assert not {"iframe", "object", "embed", "video", "audio", "form"} & {tag for tag, _ in reader.elements}


def test_the_page_is_light(page_path):
    assert page_path.stat().st_size < 4 * 2**20


def test_every_picture_has_words_and_every_table_heading_a_scope(reader):
    assert all(attributes["alt"] for attributes in reader.all("img"))
    pictures = [attributes for _, attributes in reader.elements if attributes.get("role") == "img"]
    assert len(pictures) > 100
    assert all(attributes.get("aria-label") for attributes in pictures)
    assert all(attributes.get("scope") == "col" for attributes in reader.all("th"))
    assert reader.all("html")[0]["lang"] == "en"


def test_every_number_has_an_entry_in_the_glossary(reader):
    defined = {attributes["id"] for _, attributes in reader.elements if attributes.get("id", "").startswith("term-")}
    assert defined == {f"term-{key}" for key, entry in GLOSSARY.items() if entry.page == "run"}
    named = {attributes["data-term"] for _, attributes in reader.elements if "data-term" in attributes}
    assert {f"term-{key}" for key in named} <= defined
    for at, (tag, attributes) in enumerate(reader.elements):
        label = reader.text_of.get(at, "").strip()
        if tag == "th":
            assert "data-term" in attributes or label in PLAIN, label
        if tag == "text" and "axis-label" in attributes.get("class", ""):
            assert label == GLOSSARY[attributes["data-term"]].axis_label


def test_every_entry_of_the_glossary_is_on_a_full_page(data, reader):
    full = dataclasses.replace(data, model=dataclasses.replace(data.model, accuracy=0.5))
    named = {attributes["data-term"] for _, attributes in Reader(page(full)).elements if "data-term" in attributes}
    assert {key for key, entry in GLOSSARY.items() if entry.page == "run"} - named == set()


def test_equal_data_give_equal_bytes(data):
    assert page(data) == page(data)


@pytest.mark.parametrize(
    ("left_out", "sentence"),
    [
        ({"saes": (), "comparisons": ()}, "No SAE in this run: the network was studied alone (sae=none)"),
        ({"mis": None, "scores": (), "units": (), "comparisons": ()}, "No scores: the stage mis was not run."),
        ({"comparisons": ()}, "No comparison: features and neurons were not both scored."),
        ({"circuit": None, "faithfulness": ()}, "No circuit: the stage circuit was not run."),
        ({"units": ()}, "No pictures of units:"),
        ({"faithfulness": ()}, "No faithfulness curve:"),
        ({"circuit": None}, "Does the circuit do the work?"),
        (
            {name: () for name in ("saes", "scores", "units", "comparisons", "faithfulness")}
            | {"mis": None, "circuit": None},
            "No unit was scored in this run.",
        ),
    ],
    ids=["sae", "mis", "comparison", "circuit", "units", "curves", "curves alone", "everything"],
)  # fmt: skip
def test_what_was_not_run_is_left_out_with_a_sentence(data, left_out, sentence):
    html = page(dataclasses.replace(data, **left_out))
    Reader(html)
    assert sentence in html


def test_numbers_of_the_run_are_on_the_page(html, data):
    for words in (
        data.run.key,
        data.run.command,
        "9b1deb4d3b7d4bad",
        "2.15.0",
        "57934424a1b2c3d4",
        "1\u202f288",
        "k: 16",
    ):
        assert words in html
    assert html.count("held out</b>") == 4


def test_hostile_names_stay_text(data):
    evil = "<script>alert('x')</script>"
    scenes = [dataclasses.replace(data.dataset.scenes[0], name=evil)]
    hostile = dataclasses.replace(
        data,
        run=dataclasses.replace(data.run, name=evil, config_yaml=evil, command=evil),
        model=dataclasses.replace(data.model, name=evil),
        dataset=dataclasses.replace(data.dataset, name=evil, group_word=evil, scenes=scenes),
        sites=[dataclasses.replace(data.sites[0], path=evil)],
        scores=[dataclasses.replace(data.scores[0], site=evil)],
        units=[dataclasses.replace(data.units[0], site=evil)],
        comparisons=[dataclasses.replace(data.comparisons[0], site=evil, negatives=evil)],
        saes=[dataclasses.replace(data.saes[0], site=evil, name=evil)],
        circuit=dataclasses.replace(
            data.circuit, objective=evil, sites=[dataclasses.replace(data.circuit.sites[0], site=evil)],
            nodes=[dataclasses.replace(data.circuit.nodes[0], site=evil)],
        ),
        notes=[evil],
    )  # fmt: skip
    html = page(hostile)
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html
    assert len(Reader(html).all("script")) == 3  # our own two, and the data


def test_a_page_that_would_be_too_large_shows_less_and_says_so(data, tmp_path):
    full = len(page(data, ReportConfig(units=2, images=9, image_px=24)).encode())
    bare = len(page(data, ReportConfig(units=1, images=1, image_px=24)).encode())
    limit = (full + bare) / 2 / 2**20
    path = write_report(data, tmp_path / "report.html", ReportConfig(units=2, images=9, image_px=24, max_mib=limit))
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size <= limit * 2**20
    said = re.search(r"this page shows (\d) of 9 images a unit and (\d) of 2 units a row", text)
    assert said is not None
    tiles = re.findall(r'class="tiles"[^>]*style="--n:(\d+)"', text)
    assert max(map(int, tiles)) == int(said[1]) < 9
    assert Reader(text).all("article")


def test_a_limit_that_cannot_be_kept_is_a_mistake_of_the_user(data, tmp_path):
    with pytest.raises(
        ConfigError, match=r"report\.max_mib=0\.01 is too small: the page takes \d\.\d MiB .* Set report\.max_mib="
    ):
        write_report(data, tmp_path / "report.html", ReportConfig(units=1, images=1, image_px=8, max_mib=0.01))
    assert not list(tmp_path.iterdir())
