"""data_loader.py: which rows a step gets."""
import collections
import shutil

import numpy as np
import pytest
from conftest import IMG_DIM, convert, make_rows, unverified, write_rows

import data_loader

pytestmark = pytest.mark.check
ARRAYS = ("train", "val", "all", "ref")


class FakeArray:
    """An array in memory with what data_loader reads of arrays.FeatureArray."""

    def __init__(self, class_ids, labels=None):
        self.class_ids, self.labels = np.array(class_ids), labels
        self.num_rows, self.img_dim = len(class_ids), 2
        self.features = np.stack([np.arange(len(class_ids)), np.array(class_ids)], axis=1).astype(np.float32)
        self.first = np.searchsorted(self.class_ids, np.arange(6))


@pytest.fixture
def batches():
    train = FakeArray(np.arange(23) % 5, labels=np.arange(23) % 2)
    unverified = FakeArray(np.repeat([0, 1, 3, 4], [1, 30, 5, 14]))  # class 2 has no rows
    data = data_loader.TrainingData(
        None, None, train, None, unverified, [], usable=np.array([True, True, False, True, True]), trained_on=np.arange(1, 23)
    )
    return data_loader.Batches(data, batch_size_sup=7, batch_size_unsup=6, seed=3)


def test_every_verified_row_once_per_epoch(batches):
    drawn = np.concatenate([batches.verified_indices(step) for step in range(44)])  # 14 epochs of 22 rows, 308 = 44 * 7
    for epoch in range(14):
        assert sorted(drawn[epoch * 22 : epoch * 22 + 22]) == list(range(1, 23))
    assert not np.array_equal(drawn[:22], drawn[22:44])


def test_rows_depend_on_the_step_alone(batches):
    late = batches.verified_indices(40), batches.unverified_indices(40)
    for step in range(40):
        batches.verified_indices(step)
    np.testing.assert_array_equal(late[0], batches.verified_indices(40))
    np.testing.assert_array_equal(late[1], batches.unverified_indices(40))


def test_unverified_rows_are_uniform_over_classes_then_rows(batches):
    rows = np.concatenate([batches.unverified_indices(step) for step in range(4000)])
    classes = np.repeat([0, 1, 3, 4], [1, 30, 5, 14])[rows]
    for c in (0, 1, 3, 4):
        assert np.mean(classes == c) == pytest.approx(0.25, abs=0.01)
    counts = collections.Counter(rows[classes == 3])
    assert len(counts) == 5
    assert min(counts.values()) > 0.81 * max(counts.values())


def test_chunk_holds_verified_then_unverified_rows(batches):
    chunk = batches.chunk(2, 5)
    assert chunk.features.shape == (3, 13, 2)
    for k, step in enumerate(range(2, 5)):
        np.testing.assert_array_equal(chunk.features[k, :7, 0], batches.verified_indices(step))
        np.testing.assert_array_equal(chunk.labels[k, :7], batches.verified_indices(step) % 2)
        np.testing.assert_array_equal(chunk.features[k, 7:, 0], np.sort(batches.unverified_indices(step)))
    np.testing.assert_array_equal(chunk.class_ids, chunk.features[:, :, 1])
    np.testing.assert_array_equal(chunk.verified, [1] * 7 + [0] * 6)
    in_order = list(batches.chunks([(0, 2), (2, 5)]))
    assert [bounds[:2] for bounds in in_order] == [(0, 2), (2, 5)]
    np.testing.assert_array_equal(in_order[1][2].features, chunk.features)


def test_a_folder_from_before_checksums_is_read_with_a_warning(sample_dir, tmp_path, capsys):
    shutil.copytree(sample_dir / "data", tmp_path / "data")
    for path in (tmp_path / "data").glob("*_checksums.json"):
        path.unlink()
    assert data_loader.load(str(tmp_path / "data"), embed_norm="log").train.num_rows == 89
    warnings = capsys.readouterr().err
    assert all(f"{name}.npy: has no {name}_checksums.json" in warnings for name in ("train", "val", "all", "ref"))


def test_references_of_other_rows_are_used_with_a_warning(sample_dir, tmp_path, capsys):
    shutil.copytree(sample_dir / "data", tmp_path / "data")
    rows = unverified(make_rows(200, seed=9))
    convert("all", tmp_path / "data", write_rows(tmp_path / "rows.tsv", rows), sample_dir / "classes.txt")
    data_loader.load(str(tmp_path / "data"), embed_norm="log")
    assert "ref.npy: was found on other rows than those of" in capsys.readouterr().err


def altered(folder, new, change, *names):
    """A copy of a folder of arrays whose features are changed. Its arrays are as from before there were checksums."""
    shutil.copytree(folder, new)
    for path in new.glob("*_checksums.json"):
        path.unlink()
    for name in names:
        array = np.load(new / f"{name}.npy")
        features = array if name == "ref" else array[:, :IMG_DIM]
        features[...] = change(features)
        np.save(new / f"{name}.npy", array)
    return str(new)


@pytest.mark.parametrize("change, names, expected", [
    (lambda x: x, ARRAYS, "log"),
    (lambda x: 3 * x, ARRAYS, "log"),
    (lambda x: x - x.min() - 1e-6, ["ref"], "log"),
    (lambda x: x - 2, ARRAYS, "scaled_log"),
    (lambda x: 0.01 * x, ARRAYS, "scaled_log"),
    (lambda x: 100 * x, ARRAYS, "scaled_log"),
    (lambda x: x - x.min() - 0.5, ["val"], "scaled_log"),  # a single array with negative features, none below -1
    (lambda x: x - 2, ["ref"], "scaled_log"),
], ids=["as they are", "x 3", "references rounded", "signed", "tiny", "huge", "val alone", "references alone"])
def test_auto_takes_log_for_usual_features_that_are_never_negative(sample_dir, tmp_path, change, names, expected, capsys):
    data_dir = altered(sample_dir / "data", tmp_path / "data", change, *names)
    assert data_loader.load(data_dir, embed_norm="auto").embed_norm == expected
    assert f"--embed_norm=auto: {expected}, since the lowest feature is " in capsys.readouterr().out
