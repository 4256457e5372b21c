from __future__ import annotations

import io
import json
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mis_lab.activations.config import Precision
from mis_lab.activations.shards import ActivationWriter, StoredActivations
from mis_lab.core.errors import DataError, StoreError
from mis_lab.model.sites import Site

STORE_PAGE = Path(__file__).resolve().parents[3] / "docs" / "store.md"
SITE = Site(path="blocks.2", layout="bchw", width=6, n_positions=4, grid=(2, 2), n_prefix=0, tokens="all")


def writer_of(folder: Path, n_images: int, site: Site = SITE, **options) -> ActivationWriter:
    ids = [f"image {index}" for index in range(n_images)]
    return ActivationWriter(folder, site, ids, ["one"] * n_images, [-1] * n_images, **options)


@pytest.mark.parametrize("precision", list(Precision))
@given(data=st.data())
@settings(max_examples=8)
def test_what_was_written_in_any_chunks_is_read_back(precision, data):
    # 128 KiB an image in float32: 8 images a shard of 1 MiB, 16 in float16.
    site = Site("layer1", "btd", width=512, n_positions=64, grid=(8, 8), n_prefix=1, tokens="patches")
    n_images = data.draw(st.integers(1, 20))
    x_npd = torch.randn(n_images, 64, 512, generator=torch.Generator().manual_seed(n_images))
    stored_npd = x_npd.to(torch.float16).float() if precision is Precision.float16 else x_npd
    with tempfile.TemporaryDirectory() as folder:
        at = 0
        with writer_of(Path(folder), n_images, site, precision=precision, shard_mib=1) as writer:
            while at < n_images:
                stop = min(n_images, at + data.draw(st.integers(1, 11)))
                writer.append(x_npd[at:stop], range(at, stop))
                at = stop
        per_shard = 8 if precision is Precision.float32 else 16
        assert len(list(Path(folder).glob("shard-*.npy"))) == -(-n_images // per_shard)
        stored = StoredActivations(Path(folder))
        assert stored.site == site
        assert len(stored) == n_images * 64
        start = data.draw(st.integers(0, n_images))
        stop = data.draw(st.integers(start, n_images))
        read = stored.read(start, stop)
        assert read.dtype == torch.float32
        assert torch.equal(read, stored_npd[start:stop])
        chosen = data.draw(st.lists(st.integers(0, n_images - 1), max_size=12))
        assert torch.equal(stored.take(chosen), stored_npd[chosen])
        assert torch.equal(stored.take(range(start, stop)), stored_npd[start:stop])
        numbers = data.draw(st.lists(st.integers(0, n_images * 64 - 1), max_size=12))
        assert torch.equal(stored.vectors(numbers), stored_npd.flatten(0, 1)[numbers])
        batches = list(stored.images(data.draw(st.integers(1, 30))))
        assert [index for indices, _ in batches for index in indices] == list(range(n_images))
        assert torch.equal(torch.cat([x_bpd for _, x_bpd in batches]), stored_npd)
        of_run = list(stored.images(4, range(start, stop)))
        assert [index for indices, _ in of_run for index in indices] == list(range(start, stop))
        assert all(torch.equal(x_bpd, stored_npd[indices]) for indices, x_bpd in of_run)
        del stored, batches, of_run


def test_columns_and_names_come_along(write):
    stored = write(torch.randn(5, 4, 6))
    assert stored.ids == [f"image/{index:04d}" for index in range(5)]
    assert stored.groups == ["scene 0"] * 3 + ["scene 1"] * 2
    assert stored.labels == [-1, 0, 1, 2, -1]
    assert stored.about == {"dataset": "made_up", "class_names": ["a", "b", "c"]}
    assert (stored.n_images, stored.n_positions, stored.width) == (5, 4, 6)


def test_the_documented_lines_read_it_with_numpy_alone(write):
    x_npd = torch.randn(20, 64, 512)
    stored = write(x_npd)
    lines = re.search(r"<!-- read -->\n```python\n(.*?)```", STORE_PAGE.read_text(encoding="utf-8"), re.S).group(1)
    assert len(lines.strip().splitlines()) == 5
    known: dict = {"folder": stored.folder}
    exec(lines, known)
    assert sum(len(shard) for shard in known["shards"]) == 20
    assert np.array_equal(np.concatenate(known["shards"]), x_npd.numpy())
    assert known["ids"] == stored.ids
    assert {shard.dtype.str for shard in known["shards"]} == {"<f4"}


def test_the_documented_metadata_is_what_is_written(write):
    stored = write(torch.randn(3, 4, 6))
    metadata = json.loads((stored.folder / "metadata.json").read_text())
    section = STORE_PAGE.read_text(encoding="utf-8").split("## Activations, format version 1")[1]
    told = re.findall(r"^\| `(\w+)` \|", section, re.M)
    assert sorted(told) == sorted([*metadata, *metadata["site"]])
    assert metadata["version"] == 1


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_statistics_are_exact_whatever_the_chunks(write, chunk):
    # A mean a thousand times the spread: sums of squares in float32 would have no right digit left.
    x_npd = torch.randn(100, 9, 40) + 1000
    moments = write(x_npd, chunk=chunk).moments
    x = x_npd.flatten(0, 1).double().numpy()
    assert moments.count == 900
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, x.var(0), rtol=1e-9)
    assert np.array_equal(moments.minimum, x.min(0))
    assert np.array_equal(moments.maximum, x.max(0))


def test_statistics_are_those_of_the_stored_numbers(write):
    x_npd = torch.randn(10, 9, 40) * 1e-3
    moments = write(x_npd, precision=Precision.float16).moments
    rounded = x_npd.half().flatten(0, 1).double()
    np.testing.assert_allclose(moments.mean, rounded.mean(0), rtol=1e-12)
    assert not np.allclose(moments.mean, x_npd.flatten(0, 1).double().mean(0), rtol=1e-9)


@pytest.mark.parametrize(("value", "word"), [(torch.nan, "NaN"), (torch.inf, "infinite"), (-torch.inf, "infinite")])
def test_a_number_that_is_none_names_image_and_site(tmp_path, value, word):
    x_bpd = torch.randn(5, 4, 6)
    x_bpd[2, 3, 1] = value
    writer = writer_of(tmp_path, 8)
    writer.append(torch.randn(3, 4, 6), [0, 1, 2])
    told = rf"site blocks\.2: activations of image image 5 are {word}"
    with pytest.raises(DataError, match=told), writer:
        writer.append(x_bpd, range(3, 8))


def test_a_number_too_large_for_float16_says_so(tmp_path):
    x_bpd = torch.zeros(2, 4, 6)
    x_bpd[1, 0, 0] = -1e5
    with pytest.raises(DataError, match=r"image 1 reach 1e\+05, too large for float16.*precision=float32"):
        writer_of(tmp_path, 2, precision=Precision.float16).append(x_bpd, [0, 1])


def test_a_full_disk_is_told(tmp_path):
    (tmp_path / "shard-00000.npy").symlink_to("/dev/full")
    site = Site("a", "bd", width=2**16, n_positions=1, grid=(1, 1))
    with pytest.raises(StoreError, match="disk is full while writing"), writer_of(tmp_path, 3, site) as writer:
        writer.append(torch.randn(3, 1, 2**16), range(3))


def test_a_disk_that_takes_a_part_at_a_time(write, monkeypatch):
    class Slow(io.FileIO):
        def write(self, data):
            return super().write(memoryview(data)[:1000])

    monkeypatch.setattr(
        "mis_lab.activations.shards.open", lambda path, mode, buffering=0: Slow(path, mode), raising=False
    )
    x_npd = torch.randn(5, 64, 512)
    stored = write(x_npd)
    monkeypatch.undo()
    assert torch.equal(stored.read(0, 5), x_npd)


@pytest.mark.parametrize("indices", [[1, 2], [0, 2], [0, 1, 2]])
def test_images_out_of_order_are_a_bug(tmp_path, indices):
    with pytest.raises(ValueError, match="comes next"):
        writer_of(tmp_path, 2).append(torch.randn(len(indices), 4, 6), indices)


def test_another_shape_than_the_sites_is_a_bug(tmp_path):
    with pytest.raises(ValueError, match=r"\(2, 6, 4\) is not"):
        writer_of(tmp_path, 2).append(torch.randn(2, 6, 4), [0, 1])


def test_an_unfinished_folder_is_not_read(tmp_path):
    writer = writer_of(tmp_path, 3)
    writer.append(torch.randn(2, 4, 6), [0, 1])
    with pytest.raises(ValueError, match="2 of 3 images"):
        writer.close()
    with pytest.raises(StoreError, match="no activations; looked in"):
        StoredActivations(tmp_path)


def test_an_error_while_writing_leaves_no_metadata(tmp_path):
    writer = writer_of(tmp_path, 2)
    writer.append(torch.randn(2, 4, 6), [0, 1])
    with pytest.raises(RuntimeError, match="stop"), writer:
        raise RuntimeError("stop")
    assert not (tmp_path / "metadata.json").exists()


@pytest.mark.parametrize("change", [{"version": 2}, {"format": "other"}, {"version": None}])
def test_another_version_is_refused(write, change):
    stored = write(torch.randn(2, 4, 6))
    path = stored.folder / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StoreError, match=r"reads mis_lab\.activations version 1"):
        StoredActivations(stored.folder)


@pytest.mark.parametrize("damage", ["one byte less", "one byte more", "empty", "other", "gone"])
def test_a_damaged_shard_is_named(write, damage):
    stored = write(torch.randn(20, 64, 512))
    shard = stored.folder / "shard-00001.npy"
    whole = shard.read_bytes()
    if damage == "gone":
        shard.unlink()
    else:
        damaged = {"one byte less": whole[:-1], "one byte more": whole + b"0", "empty": b""}
        shard.write_bytes(damaged.get(damage, whole.replace(b"<f4", b"<i4", 1)))
    told = "missing" if damage == "gone" else "damaged or cut short"
    with pytest.raises(StoreError, match=rf"shard-00001\.npy is {told}"):
        StoredActivations(stored.folder)


def test_images_that_do_not_exist(write):
    stored = write(torch.randn(3, 4, 6))
    for wrong in (lambda: stored.read(2, 4), lambda: stored.take([0, 3]), lambda: stored.vectors([12])):
        with pytest.raises(IndexError, match="of 3"):
            wrong()
