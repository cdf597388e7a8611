"""The rows that a classifier is trained or tested on: features in an array, or images in a list.

A module of its own because train_classifier.py treats both alike. Each kind has a path, keys, class_ids (int32 [N]), labels (int [N],
or None where no row is verified), identity() and inputs(rows), which reads what the classifier takes.
"""
import os
from functools import partial

import numpy as np

from util.lib import arrays, checksums, image_rows, images, threads
from util.lib.errors import UserError

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
