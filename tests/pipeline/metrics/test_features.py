"""Features by the batch: those of an image whatever else is in it, kept with the data, and no others."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from kit.jobs import execute
from kit.shards import picture
from torch import nn

from kintsugi import numerics
from kintsugi.cache import cache_folder
from kintsugi.numerics import at_once, in_whole_batches
from kintsugi.pipeline.metrics import features, kept
from kintsugi.pipeline.metrics.features import Extractor
from kintsugi.pipeline.metrics.kept import Kept
from kintsugi.pipeline.metrics.weights import Weights

CPU = torch.device("cpu")


def by_batches(monkeypatch, count):
    """Networks see so many images at once, as on a GPU they see 16."""
    monkeypatch.setitem(numerics.TOGETHER, "cpu", count)


@pytest.fixture
def network(monkeypatch, tmp_path):
    """In the place of each of clean-fid's one of convolutions; returned are the batches that it has seen.

    Nothing is kept of any test before.
    """
    monkeypatch.setenv("KINTSUGI_CACHE", str(tmp_path / "cache"))
    (tmp_path / "weights").write_bytes(b"weights")
    monkeypatch.setattr(Weights, "find", lambda self: tmp_path / "weights")
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 7, 7), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Conv2d(8, 2048, 3), nn.ReLU()
    )
    batches = []

    def seen(images):
        batches.append(images.clone())
        return layers(images / 255).flatten(1)

    monkeypatch.setattr(features, "network", lambda mode, device: seen)
    return batches


def pictures(count, sides=(64, 64)):
    return [picture(i, sides[i % 2])[..., : 3 - 2 * (i % 3 == 0)] for i in range(count)]


@pytest.mark.parametrize("space", ["clean", "legacy_pytorch", "legacy_tensorflow", "patches"])
def test_features_of_an_image_do_not_depend_on_what_is_beside_it(space, network, monkeypatch):
    """To the last digit, in other batches and other places; with images of two sizes and one colour."""
    by_batches(monkeypatch, 3)
    extract, keys, images = Extractor([space]), list("abcdefg"), pictures(7, (64, 48))
    together = extract(keys, images)
    alone = [extract([key], [image])[0] for key, image in zip(keys, images, strict=True)]
    reverse = extract(keys[::-1], images[::-1])[::-1]
    for found in (alone, reverse):
        for one, other in zip(together, found, strict=True):
            assert np.array_equal(one[space], other[space])
    assert len({values.tobytes() for each in together for values in each.values()}) == 7
    assert all(len(batch) == 3 for batch in network)


def test_a_batch_is_filled_with_its_last_image_and_gives_none_of_it(monkeypatch):
    by_batches(monkeypatch, 4)
    batches = []

    def network(one, other):
        batches.append((one.flatten().tolist(), other.flatten().tolist()))
        return one + other

    x = torch.arange(6.0).view(6, 1)
    assert torch.equal(in_whole_batches(network, CPU, x, 10 * x), 11 * x)
    assert [one for one, _ in batches] == [[0, 1, 2, 3], [4, 5, 5, 5]]
    assert batches[1][1] == [40, 50, 50, 50]


def test_on_a_cpu_images_go_one_by_one_and_on_a_gpu_sixteen_together():
    assert (at_once(CPU), at_once(torch.device("cuda"))) == (1, 16)


def test_nothing_is_extracted_of_no_image_and_in_no_space(network):
    assert Extractor(["clean"])([], []) == []
    assert Extractor([])(["a"], [picture(0, 64)]) == [{}]
    assert not network


def file_of_features():
    return cache_folder() / "features" / "2048"


def extracted(images, of_data=True, space="clean"):
    found = Extractor([space])([str(i) for i in range(len(images))], images, of_data)
    return np.stack([each[space] for each in found])


def test_features_of_a_data_set_are_extracted_once(network):
    first, again = extracted(pictures(5)), extracted(pictures(6)[::-1])[:0:-1]
    assert np.array_equal(first, again)
    assert len(network) == 6, "five, and the sixth"
    assert np.array_equal(first, extracted(pictures(5), of_data=False))
    assert len(network) == 11


def test_what_is_not_of_a_data_set_is_not_kept(network):
    extracted(pictures(2), of_data=False)
    extracted(pictures(2))
    assert len(network) == 4


def test_features_that_were_made_in_another_way_are_others(network, monkeypatch, tmp_path):
    image = pictures(1)
    changes = [
        lambda: None,
        lambda: (tmp_path / "weights").write_bytes(b"other weights"),
        lambda: monkeypatch.setattr(features, "processor", lambda: "another"),
        lambda: monkeypatch.setattr(torch, "get_num_threads", lambda: 7),
        lambda: monkeypatch.setattr(features, "libraries", lambda: ("torch 99",)),
        lambda: by_batches(monkeypatch, 2),
    ]
    for number, change in enumerate(changes, 1):
        change()
        extracted(image)
        extracted(image)
        assert len(network) == number
    extracted(image, space="legacy_pytorch")
    assert len(network) == len(changes) + 1


def cut(file):
    file.write_bytes(file.read_bytes()[:4096])


def flip(file):
    """One bit of every kilobyte that was written."""
    content = bytearray(file.read_bytes())
    for at in range(0, len(content), 1024):
        content[at] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [flip, cut, lambda file: file.write_bytes(b""), Path.unlink])
def test_what_is_damaged_is_extracted_again(damage, network, monkeypatch):
    monkeypatch.setattr(kept, "BUCKETS", 1)
    expected = extracted(pictures(1))
    damage(file_of_features())
    assert np.array_equal(extracted(pictures(1)), expected)
    assert np.array_equal(extracted(pictures(1)), expected)
    assert len(network) == 2


def test_the_file_keeps_its_size_and_the_latest_find_a_place(network, monkeypatch):
    monkeypatch.setattr(kept, "BUCKETS", 1)
    monkeypatch.setattr(kept, "PLACES", 2)
    expected = extracted(pictures(9), of_data=False)
    assert np.array_equal(extracted(pictures(9)), expected)
    assert np.array_equal(extracted(pictures(9)), expected)
    assert file_of_features().stat().st_size <= 2 * Kept(2048).size
    before, latest = len(network), [np.full((64, 64, 3), 7, np.uint8)]
    assert np.array_equal(extracted(latest), extracted(latest))
    assert len(network) == before + 1


def test_without_a_folder_nothing_is_kept_and_all_goes_on(network, tmp_path):
    (tmp_path / "cache").write_bytes(b"a file")
    assert np.array_equal(extracted(pictures(3)), extracted(pictures(3)))
    assert len(network) == 6


def test_writers_at_the_same_time_leave_nothing_that_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setenv("KINTSUGI_CACHE", str(tmp_path))
    monkeypatch.setattr(kept, "BUCKETS", 1)
    images = [np.full((2, 2, 3), i, np.uint8) for i in range(6)]

    def work(number):
        one = Kept(300)
        for turn in range(60):
            some = images[(number + turn) % 6 :][:3]
            made = one.of(some, "", lambda new: [np.full(300, x.mean(), np.float32) for x in new])
            assert [set(values) for values in made] == [{x.mean()} for x in some]

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))


def test_rows_and_features_of_a_run_are_the_same_bytes_with_kept_ones(network, make_job, tmp_path):
    runs = []
    for name in ("first", "second"):
        runs.append(execute(make_job(metrics=["fid"], output=str(tmp_path / name))).folder)
        runs.append(len(network))
    first, both, second, halves = runs
    names = {path.relative_to(first) for kind in ("data", "features") for path in (first / kind).iterdir()}
    assert {name.parts[0] for name in names} == {"data", "features"}
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    assert halves == both + both / 2
