"""The rows that a classifier is trained or tested on: features in an array, or images in a list.

A module of its own because the training treats both alike. Each kind has a path, keys, class_ids (int32 [N]), labels (int [N],
or None where no row is verified), identity() and inputs(rows), which reads what the classifier takes.
"""
import os
from functools import partial
from typing import NamedTuple

import numpy as np

from util.lib import arrays, checksums, class_list, image_rows, images, sample_weights, threads
from util.lib.errors import UserError, counted, warn

BLOCK_ROWS = 1024  # rows of an array that are in memory at once


class ArrayRows:
    """The rows of an array like all.npy, or where img_dim is given perhaps like train.npy.

    Args:
        path: of the array. class_names: list of str. img_dim: numbers per feature that it must have, or None.
    """

    def __init__(self, path, class_names, img_dim=None):
        verified = False
        if img_dim is not None:
            what = "rows of a feature, its class id and perhaps its verification label"
            verified = arrays.open_array(path, what, "util/convert_data.py").shape[1] == img_dim + 2
        array = arrays.FeatureArray(path, class_names=class_names, verified=verified, img_dim=img_dim, keys=False)
        self.path, self.class_ids, self.labels = path, array.class_ids, array.labels
        self.has_keys = os.path.exists(arrays.keys_path(path))
        self.keys = array.sample_keys() if self.has_keys else [str(row) for row in range(array.num_rows)]
        self.img_dim, self._array = array.img_dim, array

    def identity(self):
        """The rows in one line, by which others are told apart."""
        return self._array.identity()

    def inputs(self, rows, _=None):
        """Reads features. rows: int [n]. Returns float32 [n, D]."""
        return self._array.features[rows]

    def statistics(self, normalise):
        """What a classifier needs to normalise features.

        Args:
            normalise: log, l2_norm, standardise or auto, which stands for log where the features suit it, else for standardise.

        Returns:
            (normalise, not auto; the mean and variance of each number of the features, float32 [D] twice, or None: unused). Raises
            UserError for features that the normalisation does not allow.
        """
        if normalise == "l2_norm":
            return normalise, None
        total, squares, count, lowest = np.zeros(self.img_dim), np.zeros(self.img_dim), len(self.keys), np.inf
        for start in range(0, count, BLOCK_ROWS):
            block = self._array.features[start : start + BLOCK_ROWS]
            if normalise == "log" and block.min() <= -1:
                row = start + int(np.argmax(block.min(axis=1) <= -1))
                raise UserError(
                    f"{self.path}: row {row} has {block.min():g}, and --normalise=log takes log(1 + x), which needs every feature "
                    "above -1; give --normalise=auto"
                )
            lowest = min(lowest, block.min())
            total += block.sum(axis=0, dtype=np.float64)
            squares += np.square(block, dtype=np.float64).sum(axis=0)
        mean = total / count
        if normalise == "auto":
            normalise = "log" if arrays.suit_log(lowest, mean.mean()) else "standardise"
            print(f"--normalise=auto: {normalise}, since the lowest feature is {lowest:.3g} and their mean {mean.mean():.3g}")
        return normalise, (np.float32(mean), np.float32(np.maximum(squares / count - mean**2, 1e-12)))


class ImageRows:
    """The images of a list.

    Args:
        listed: list of image_rows.Image. class_names: list of str, with the class of each. image_dir, resize, crop, mirror: flags.
        path: where the list comes from, for messages. num_threads: int, that read images. files: paths of the network's files.
    """

    has_keys = True

    def __init__(self, listed, class_names, *, image_dir, resize, crop, mirror, path, num_threads, files):
        id_of = {name: i for i, name in enumerate(class_names)}
        self.path, self._listed, self._num_threads = path, listed, num_threads
        self.keys = [image.columns["key"] for image in listed]
        self.class_ids = np.array([id_of[image.columns["class"]] for image in listed], np.int32)
        self.labels = None
        if "label" in listed[0].columns:
            self.labels = np.array([int(image.columns["label"]) for image in listed])
        self._mirror = mirror
        self._read = image_rows.image_reader(image_dir, partial(images.middle, resize=resize, crop=crop))
        self._identity = image_rows.run_identity(listed, image_dir, files, resize=resize)

    def identity(self):
        """The rows in one line, by which others are told apart."""
        return checksums.of(repr(self._identity).encode())

    def inputs(self, rows, random=None):
        """Reads images.

        Args:
            rows: int [n]. random: numpy Generator of the parts to cut out and of what is mirrored, or None: the middle, as it is.

        Returns:
            uint8 [n, crop, crop, 3] RGB.
        """
        places = np.full((len(rows), 2), 0.5) if random is None else random.random((len(rows), 2))
        mirrored = np.zeros(len(rows), bool) if random is None or not self._mirror else random.random(len(rows)) < 0.5

        def read(i):
            image = self._listed[rows[i]]
            pixels, why = self._read(image.path, place=places[i])
            if pixels is None:
                raise UserError(f"{self.path}:{image.line}: {image.path}: {why}; take it out of the list, or restore the image")
            return pixels[:, ::-1] if mirrored[i] else pixels

        return np.stack(list(threads.in_order(read, range(len(rows)), self._num_threads)))


class Data(NamedTuple):
    """What is trained and tested on, checked.

    class_names: list of str [C]. source: ArrayRows or ImageRows. rows: sample_weights.Rows, what to learn from its rows.
    test: like source, or None. tested: int [T], its rows that are of their class for sure.
    """

    class_names: list
    source: object
    rows: sample_weights.Rows
    test: object = None
    tested: np.ndarray | None = None


def open_arrays(input_npy, test_data, verified, class_path):
    """Opens the arrays to train and to test on. Returns (class names, ArrayRows, ArrayRows or None)."""
    names = class_list.load(class_path)
    for path in filter(None, (input_npy, *verified, test_data)):
        class_list.check_beside(os.path.dirname(path), names, class_path)
    source = ArrayRows(input_npy, names)
    return names, source, ArrayRows(test_data, names, source.img_dim) if test_data else None


def open_images(
    *, image_dir, image_list, list_columns, path_column, test_data, class_path, resize, crop, mirror, num_workers, keras_model,
    network_weights,
):
    """Lists the images to train and to test on. Returns (class names, ImageRows, ImageRows or None)."""
    lists = [(image_list or image_dir, image_rows.load(image_dir, image_list, list_columns, path_column))]
    if test_data:
        lists.append((test_data, image_rows.read_list(test_data, list_columns, path_column)))
    for path, listed in lists:
        names = image_rows.load_class_list(class_path, sorted({image.columns["class"] for image in listed}), path)
    found = [
        ImageRows(
            listed, names, image_dir=image_dir, resize=resize, crop=crop, mirror=mirror, path=path,
            num_threads=threads.count(num_workers), files=[keras_model, network_weights],
        ) for path, listed in lists
    ]
    return names, found[0], found[1] if test_data else None


def rows_to_test(test):
    """The rows that are of their class for sure: those verified as correct, or all where none is verified. Returns int [T]."""
    tested = np.arange(len(test.keys)) if test.labels is None else np.flatnonzero(test.labels == 1)
    if not len(tested):
        raise UserError(f"{test.path}: none of its rows is verified as correct, so there is nothing to test on; verify more")
    return tested


def label_rows(names, source, test, *, verified, score_file, weights, score, weight_file, list_file, class_balance, soft=None):
    """What to learn from each row. Returns a sample_weights.Rows, and how many rows there are, in words.

    Args:
        names: list of str. source, test: rows to train and to test on. soft: float32 [N], weights from 0 on instead of those of scores
            or of a file, or None. The others are flags.
    """
    rows, done = sample_weights.Rows(source.keys, source.class_ids, names, source.path), []
    if soft is not None:
        rows.weights = soft.copy()
    elif score_file:
        rows.weight_by_scores(score_file, weights, score)
    elif weight_file:
        rows.weights = sample_weights.read(weight_file, len(source.keys), source.path)
    if source.labels is not None:
        rows.weights = np.float32(source.labels == 1)
    if list_file:
        relabelled, dropped = rows.relabel(list_file)
        done += [f"{relabelled} relabelled"] + [f"{dropped} dropped"] * bool(dropped)
    for path in verified:
        found = rows.verify(arrays.FeatureArray(path, class_names=names, verified=True))
        done.append(f"{found} verified in {path}")
    if test and test.has_keys:
        done.append(f"{rows.leave_out(test.keys, test.path)} left out, to test on")
    if class_balance:
        rows.balance()
    used = rows.weights > 0
    without = np.flatnonzero(np.bincount(rows.class_ids[used], minlength=len(names)) == 0)
    if len(without) > len(names) - 2:
        left = counted(len(names) - len(without), "class")
        raise UserError(f"{source.path}: rows of {left} have a weight above 0, expected two classes or more; weight more rows")
    if len(without):
        warn(f"{source.path}: {counted(len(without), 'class')} without a row of weight above 0, {names[without[0]]} for one")
    return rows, ", ".join([f"{source.path}: {len(used)} rows of {len(names)} classes", f"{int(used.sum())} of weight above 0", *done])
