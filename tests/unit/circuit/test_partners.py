"""Partners: never the image itself, the same whatever the order, and what a file says."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mis_lab.circuit.partners import partners_from_file, partners_of_other_class, random_partners
from mis_lab.core.errors import DataError, MissingFileError

IDS = [f"image/{number}" for number in range(12)]
CLASSES = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0])


@given(n=st.integers(2, 12), seed=st.integers(0, 100))
def test_a_random_partner_is_another_image(n: int, seed: int) -> None:
    places = random_partners(IDS[:n], IDS[:n], seed)
    assert not (places == torch.arange(n)).any()
    assert torch.equal(places, random_partners(IDS[:n], IDS[:n], seed))


def test_partners_differ_with_the_image_and_the_seed() -> None:
    assert len(set(random_partners(IDS, IDS, 0).tolist())) > 1
    assert not torch.equal(random_partners(IDS, IDS, 0), random_partners(IDS, IDS, 1))


@given(st.permutations(range(12)), st.permutations(range(12)))
def test_partners_of_another_class_do_not_depend_on_the_order_of_images(order: list[int], others: list[int]) -> None:
    ids, candidates = ([IDS[place] for place in places] for places in (order, others))
    found = partners_of_other_class(ids, CLASSES[order], candidates, CLASSES[others], 3)
    again = partners_of_other_class(IDS, CLASSES, IDS, CLASSES, 3)
    named = {image_id: candidates[place] for image_id, place in zip(ids, found.tolist(), strict=True)}
    assert named == {image_id: IDS[place] for image_id, place in zip(IDS, again.tolist(), strict=True)}
    assert (CLASSES[order] != CLASSES[others][found]).all()


def test_all_partners_may_be_of_one_class() -> None:
    zeros = [IDS[place] for place in (CLASSES == 0).nonzero().squeeze(1)]
    zero_n = torch.zeros(len(zeros), dtype=torch.int64)
    found = partners_of_other_class(zeros, zero_n, IDS, CLASSES, 0, partner_class=2)
    assert set(found.tolist()) <= {2, 5, 8}
    with pytest.raises(DataError, match=r"class 0, which is not its own, as the partner of image/0"):
        partners_of_other_class(zeros, zero_n, IDS, CLASSES, 0, partner_class=0)


def test_an_image_without_a_partner_is_told() -> None:
    with pytest.raises(DataError, match="not another image as the partner of image/0"):
        random_partners(IDS[:1], IDS[:1], 0)
    with pytest.raises(DataError, match="not an image of another class as the partner of image/0"):
        partners_of_other_class(IDS[:1], CLASSES[:1], [IDS[0], IDS[3]], CLASSES[[0, 3]], 0)


PAIRS = {"image/0": "image/5", "image/1": "image/1", "image/7": "image/0"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pairs.csv", "image,partner\n" + "".join(f"{a},{b}\n" for a, b in PAIRS.items())),
        ("more.csv", "note,partner,image\n" + "".join(f"x,{b},{a}\n" for a, b in PAIRS.items())),
        ("pairs.json", json.dumps(PAIRS)),
        ("list.json", json.dumps([list(pair) for pair in PAIRS.items()])),
    ],
)
def test_pairs_come_from_csv_and_json(tmp_path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert partners_from_file(tmp_path / name, ["image/7", "image/0", "image/1"], IDS).tolist() == [0, 5, 1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "first,second\na,b\n", "no columns image and partner"),
        ("a.csv", "image,partner\nimage/0\n", "row of image image/0 names no partner"),
        ("a.csv", "image,partner\nimage/0,image/1\nimage/0,image/2\n", "image/0 has two partners"),
        ("a.csv", "image,partner\nimage/1,image/2\n", "image image/0 has no partner"),
        ("a.csv", "image,partner\nimage/0,elsewhere\n", "partner elsewhere of image image/0 is no image"),
        ("a.json", "{", "are no JSON"),
        ("a.json", "3", "neither a mapping"),
        ("a.json", '[["image/0", 3]]', "neither a mapping"),
        ("a.json", '{"image/0": 3}', "neither a mapping"),
    ],
)
def test_a_file_that_does_not_do_is_told(tmp_path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        partners_from_file(tmp_path / name, ["image/0"], IDS)
    with pytest.raises(MissingFileError, match=r"no file of image pairs.*circuit.pairs_file"):
        partners_from_file(tmp_path / "b.csv", ["image/0"], IDS)
