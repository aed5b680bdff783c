"""From a screen's rows to batches: integers, order, skipped images, errors from worker processes."""

import multiprocessing
import os
import signal
import time
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from lightning_fabric import Fabric

from biomass.errors import BadImageError, ConfigError, DataError
from biomass.evaluation.accuracy import accuracy_summary, plate_accuracy
from biomass.evaluation.pooling import Bags, mean_profiles
from biomass.inference import infer
from biomass.loader import Batch, BatchReader, Loader, SkippedImages
from biomass.models import Architecture, build_network
from biomass.norms import Statistics, plate_statistics
from biomass.objectives import class_ranks
from biomass.samplers import PlateBatches
from biomass.screen import COLUMNS, VectorPixels, make_screen
from biomass.training.optim import warmup_cosine


class Spoilt(VectorPixels):
    """Pixels of which some rows cannot be read."""

    bad = (3, 5)

    def read(self, rows):
        for row in rows:
            if row in self.bad:
                raise BadImageError(f"image {row} is truncated", int(row))
        return super().read(rows)


def screen(n=12, dtype=np.uint8, pixels=VectorPixels, plates=3):
    table = pd.DataFrame(dict.fromkeys(COLUMNS, ""), index=range(n))
    table["experiment"], table["plate"], table["split"] = "E", np.arange(n) % plates, "test"
    table["label"] = np.arange(n) % 2
    table["control"] = np.where(np.arange(n) < 2 * plates, "negative", "")
    images = np.random.default_rng(0).integers(0, 200, (n, 2, 64, 64)).astype(dtype)
    return make_screen(table, pixels(images, ("a", "b")), ["x", "y"])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pixels_stay_integers_until_they_are_moved(dtype):
    source = screen(dtype=dtype)
    batch = BatchReader(source, source.plate_ids)[np.array([4, 2])]
    assert batch.images.numpy().dtype == dtype
    assert batch.rows.tolist() == [4, 2]
    moved = batch.to(torch.device("cpu"))
    assert moved.images.dtype == torch.float32
    assert np.array_equal(moved.images.numpy(), source.read(np.array([4, 2])).astype(np.float32))
    assert batch.to(torch.device("cpu"), integers=True).images.numpy().dtype == dtype


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_an_error_or_left_out(workers):
    source = screen(pixels=Spoilt)
    batches = PlateBatches(np.arange(12), batch_size=4, shuffle=False)
    with pytest.raises(BadImageError, match=r"^image 3 is truncated$"):
        list(Loader(BatchReader(source, source.plate_ids), batches, workers))
    skipped = SkippedImages(source)
    kept = []
    for batch in Loader(BatchReader(source, source.plate_ids, "skip"), batches, workers):
        skipped.note(batch)
        kept += batch.rows.tolist()
    assert kept == [i for i in range(12) if i not in (3, 5)]
    assert skipped.rows == {3: "damaged", 5: "damaged"}


def test_bad_images_are_found_by_halving_and_once():
    class Counted(Spoilt):
        bad = range(100, 117)
        reads: ClassVar[list[int]] = []

        def read(self, rows):
            Counted.reads += rows.tolist()
            return super().read(rows)

    source = screen(256, pixels=Counted)
    reader = BatchReader(source, source.plate_ids, "skip")
    rows = np.arange(256)[::-1].copy()
    rows[-1] = 255  # twice
    kept = [row for row in rows.tolist() if row not in Counted.bad]
    for most in (4 * 256, 256):
        Counted.reads.clear()
        batch = reader[rows]
        assert batch.rows.tolist() == kept
        assert batch.skipped.tolist() == list(Counted.bad)
        assert np.array_equal(batch.images.numpy(), source.pixels.array[kept])
        assert len(Counted.reads) < most
    assert len(reader[np.array([103, 104])]) == 0


class ReadBy(VectorPixels):
    """Every pixel is the number of the process that read it."""

    def read(self, rows):
        return np.full((len(rows), 1, 1, 1), os.getpid(), np.int64)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_are_kept_over_epochs_and_follow_the_sampler(workers):
    source = screen(pixels=ReadBy)
    batches = PlateBatches(np.arange(12), batch_size=2, seed=5)
    loader = Loader(BatchReader(source, source.plate_ids), batches, workers)
    readers = []
    for epoch, wanted in enumerate((6, 1, 6)):  # the second epoch is broken off while others of its batches are read
        batches.set_epoch(epoch)
        expected = [rows.tolist() for rows in batches][:wanted]
        passed = [batch for _, batch in zip(range(wanted), loader, strict=False)]
        assert [batch.rows.tolist() for batch in passed] == expected
        readers.append({int(batch.images[0]) for batch in passed})
    assert readers[0] == readers[2] >= readers[1]
    assert len(readers[0]) == max(workers, 1)
    assert (os.getpid() in readers[0]) == (workers == 0)


def test_an_unknown_policy_is_refused():
    with pytest.raises(ConfigError, match="on_bad_image 'maybe'"):
        BatchReader(screen(), np.zeros(12), "maybe")


@pytest.mark.parametrize("word", ["plate", "controls"])
def test_inference_in_chunks_equals_whole_plates(word):
    source = screen()
    network = build_network(Architecture("resnet18", 2, (3,)))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    fabric, skipped = Fabric(accelerator="cpu"), SkippedImages(source)
    plates, statistics = source.plate_ids, Statistics(word)
    outputs = {}
    for size in (None, 2):
        batches = PlateBatches(np.arange(12), plates, batch_size=size, shuffle=False)
        out = torch.zeros(12, 3)
        loader = Loader(BatchReader(source, plates), batches)
        for batch, logits in infer(fabric, network, loader, lambda x: x / 100, statistics, skipped):
            out[batch.rows] = logits.clone()
        outputs[size] = out
    torch.testing.assert_close(outputs[2], outputs[None], rtol=1e-4, atol=1e-4)
    for plate in range(3):  # against the network run on every plate alone
        mine = np.flatnonzero(plates == plate)
        images = torch.from_numpy(source.read(mine)).float() / 100
        controls = torch.from_numpy(source.negative_controls[mine]) if word == "controls" else None
        with torch.no_grad(), plate_statistics(network.eval(), torch.zeros(len(mine), dtype=int), weights=controls):
            torch.testing.assert_close(outputs[None][mine], network(images), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_batches_of_several_plates_are_not_taken_for_chunks_of_one():
    source = screen(plates=2)
    network = build_network(Architecture("test_resnet", 2, (3,)))
    batches = PlateBatches(np.arange(12), batch_size=6, shuffle=False)  # both batches hold both plates
    reader = BatchReader(source, source.plate_ids)
    found = dict.fromkeys(range(12))
    for batch, out in infer(
        Fabric(accelerator="cpu"),
        network,
        Loader(reader, batches),
        lambda x: x,
        Statistics("plate"),
        SkippedImages(source),
    ):
        with torch.no_grad(), plate_statistics(network.eval(), batch.groups):
            torch.testing.assert_close(out.clone(), network(batch.images.float()))
        found.update(dict.fromkeys(batch.rows.tolist(), True))
    assert all(found.values())


def test_class_ranks_against_sorting():
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 0.0], [5.0, 5.0, 0.0], [float("nan"), 1.0, 0.0]])
    assert class_ranks(logits, torch.tensor([2, 0, 1, 1])).tolist() == [1, 0, 1, 3]
    random = torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 9
    order = random.argsort(1, descending=True)
    assert class_ranks(random, labels).tolist() == [order[i].tolist().index(int(labels[i])) for i in range(50)]


def test_accuracy_by_parts():
    source = screen()
    rows, ranks = np.arange(12), np.array([0, 1, 0, 0, 6, 0, 2, 0, 0, 0, 9, 0])
    summary = accuracy_summary(source, rows, ranks)
    assert summary["accuracy"] == pytest.approx(8 / 12)
    assert summary["top5"] == pytest.approx(10 / 12)
    assert summary["treatments"] == pytest.approx(4 / 6)
    by_plate = plate_accuracy(source, rows, ranks)
    assert by_plate["images"].tolist() == [4, 4, 4]
    assert by_plate["accuracy"].tolist() == pytest.approx([3 / 4, 1 / 4, 1])


def test_profiles_against_a_loop():
    source = screen()
    instances = np.array([0, 0, 1, 2, 2, 2, 4, 4, 4, 4, 1, 0])
    reader = BatchReader(source, source.plate_ids, instances=instances)
    batches = [reader[np.array(rows)] for rows in ([0, 3, 6, 9, 1], [11, 10, 8, 7, 2, 4, 5])]
    vectors = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    outputs = [(batch, vectors[batch.rows]) for batch in batches]
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    mean, bags = mean_profiles(outputs, 5), Bags(outputs, 5)
    median = bags.median_profiles(chunk=2)
    assert mean.counts.tolist() == bags.counts.tolist() == [3, 2, 3, 0, 4]
    assert not mean.vectors[3].any()
    for i in (0, 1, 2, 4):
        mine = unit[instances == i]
        np.testing.assert_allclose(mean.vectors[i], mine.mean(0), rtol=1e-5)
        np.testing.assert_allclose(median.vectors[i], np.median(mine, axis=0), rtol=1e-5)
    padded = bags.read(np.array([4, 1]))
    assert padded.shape == (2, 4, 3)
    assert not padded[1, 2:].any()


def test_the_schedule_in_closed_form():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = warmup_cosine(optimizer, 4, 12)
    rates = []
    for _ in range(12):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert rates[4:] == pytest.approx([1 + np.cos(np.pi * k / 8) for k in range(8)])


def test_images_in_the_memory_of_a_device_are_those_of_the_source() -> None:
    images = np.arange(6 * 2 * 3 * 3, dtype=np.uint16).reshape(6, 2, 3, 3)
    table = pd.DataFrame(dict.fromkeys(COLUMNS, [""] * 6) | {"plate": ["P"] * 6, "label": 0})
    screen = make_screen(table, VectorPixels(images, ("a", "b")), ["x"])
    reader = BatchReader(screen, screen.plate_ids)
    reader.hold(np.array([5, 1, 2, 0]), torch.device("cpu"))
    rows = np.array([0, 5, 5, 2])
    batch = reader[rows]
    assert isinstance(batch, Batch)
    assert np.array_equal(batch.images.numpy(), images[rows])
    assert batch.images.dtype == torch.uint16
    missing = reader[np.array([1, 3])]
    assert isinstance(missing, BadImageError)
    assert missing.row == 3


class Torn(VectorPixels):
    """Images of which the first ones cannot be read."""

    def read(self, rows: np.ndarray) -> np.ndarray:
        if (rows < 3).any():
            raise BadImageError("torn", int(rows[rows < 3][0]), "skip")
        return super().read(rows)


def test_images_that_cannot_be_read_are_missing_in_the_memory_of_a_device_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("biomass.loader._UPLOAD", 2)  # of the first two, none can be read
    images = np.arange(6 * 2 * 3 * 3, dtype=np.uint16).reshape(6, 2, 3, 3) + 60000
    table = pd.DataFrame(dict.fromkeys(COLUMNS, [""] * 6) | {"plate": ["P"] * 6, "label": 0})
    screen = make_screen(table, Torn(images, ("a", "b")), ["x"])
    reader = BatchReader(screen, screen.plate_ids, "skip")
    reader.hold(np.arange(6), torch.device("cpu"))
    batch = reader[np.array([1, 5, 2, 3])]
    assert isinstance(batch, Batch)
    assert batch.rows.tolist() == [5, 3]
    assert batch.skipped.tolist() == [1, 2]
    assert np.array_equal(batch.images.numpy(), images[[5, 3]])


def test_a_reading_process_that_is_killed_is_an_error_of_the_next_batch_wherever_the_parent_is():
    reader = BatchReader(screen(), np.arange(12) % 3)
    batches = iter(Loader(reader, PlateBatches(np.arange(12), batch_size=1), num_workers=1))
    next(batches)
    (child,) = multiprocessing.active_children()
    os.kill(child.pid, signal.SIGKILL)
    child.join(9)
    time.sleep(0.1)  # where torch would raise its error
    with pytest.raises(DataError, match="was killed"):
        list(batches)
