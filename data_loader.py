"""What batches look like: verified rows in shuffled epochs, unverified rows a class at a time, as SPEC.md section 8 has it.

Which rows a step gets is a function of (seed, step) alone, so a resumed run sees the batches of an uninterrupted one. Rows are
gathered from memory-mapped arrays: a chunk of a few steps is all that is in memory.

    python train.py --data_dir=data
"""
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

VERIFIED, UNVERIFIED = 0, 1  # streams of random numbers


class Chunk(NamedTuple):
    """Batches of K consecutive steps, B rows each: the verified ones, then the unverified ones.

    features: float32 [K, B, D]. class_ids: int32 [K, B]. labels: float32 [K, B], 1 = label correct, 0 = mislabeled (0 for
    unverified rows, unused). verified: float32 [B], 1 for a row drawn from train.npy.
    """

    features: np.ndarray
    class_ids: np.ndarray
    labels: np.ndarray
    verified: np.ndarray


class Batches:
    """Draws batches.

    Args:
        train: arrays.Rows with labels. unverified: arrays.Rows grouped by class, or None if batch_size_unsup is 0.
        use_class: bool [C], False for classes that are left out of the unverified rows.
        train_rows: int [N'], the rows of `train` to draw from.
    """

    def __init__(self, train, unverified, *, batch_size_sup, batch_size_unsup, seed, train_rows, use_class):
        self._train, self._unverified, self._train_rows = train, unverified, train_rows
        self._sizes, self._seed = (batch_size_sup, batch_size_unsup), seed
        self._epoch = (-1, None)
        self._classes = np.flatnonzero(use_class)

    def verified_rows(self, step):
        """Rows of train.npy that a step gets, int [batch_size_sup]: epochs without replacement, every row once in each."""
        size, total = self._sizes[0], len(self._train_rows)
        places = step * size + np.arange(size)
        rows = np.empty(size, np.int64)
        for epoch in np.unique(places // total):
            here = places // total == epoch
            rows[here] = self._permutation(epoch)[places[here] % total]
        return self._train_rows[rows]

    def _permutation(self, epoch):
        if self._epoch[0] != epoch:
            order = np.random.default_rng([self._seed, VERIFIED, epoch]).permutation(len(self._train_rows))
            self._epoch = (epoch, order)
        return self._epoch[1]

    def unverified_rows(self, step):
        """Rows of all.npy that a step gets, int [batch_size_unsup]: a class uniformly, then a row of it uniformly."""
        rng = np.random.default_rng([self._seed, UNVERIFIED, step])
        classes = rng.choice(self._classes, self._sizes[1])
        first, end = self._unverified.first[classes], self._unverified.first[classes + 1]
        return rng.integers(first, end)

    def chunk(self, first, last):
        """The Chunk of steps first .. last - 1."""
        sup, unsup = self._sizes
        steps, size = last - first, sup + unsup
        features = np.empty((steps, size, self._train.img_dim), np.float32)
        class_ids, labels = np.empty((steps, size), np.int32), np.zeros((steps, size), np.float32)
        for k in range(steps):
            rows = self.verified_rows(first + k)
            features[k, :sup], class_ids[k, :sup] = self._train.features[rows], self._train.class_ids[rows]
            labels[k, :sup] = self._train.labels[rows]
            if unsup:
                rows = np.sort(self.unverified_rows(first + k))  # in the order of the file
                features[k, sup:], class_ids[k, sup:] = self._unverified.features[rows], self._unverified.class_ids[rows]
        verified = np.repeat(np.float32([1, 0]), self._sizes)
        return Chunk(features, class_ids, labels, verified)

    def chunks(self, bounds):
        """Yields the Chunk of each (first, last) in turn, with the next one gathered meanwhile."""
        with ThreadPoolExecutor(1) as thread:
            future = None
            for bound in bounds:
                ready, future = future, thread.submit(self.chunk, *bound)
                if ready:
                    yield ready.result()
            if future:
                yield future.result()
