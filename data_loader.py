"""What batches look like: verified rows in shuffled epochs, unverified rows a class at a time, as SPEC.md section 8 has it.

Which rows a step gets is a function of (seed, step) alone, so a resumed run sees the batches of an uninterrupted one. Rows are
gathered from memory-mapped arrays: a chunk of a few steps is all that is in memory.

    python train.py --data_dir=data
"""
import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from util.lib import arrays, class_list, metrics
from util.lib.errors import UserError, warn

VERIFIED, UNVERIFIED = 0, 1  # streams of random numbers


def load(opt):
    """Opens and checks everything that training reads. Returns (class names, train, val, all or None, references)."""
    class_path = os.path.join(opt.data_dir, "classes.txt")
    if not os.path.isdir(opt.data_dir):
        raise UserError(f"{opt.data_dir}: no such folder; give the folder of the converted data as --data_dir")
    names = class_list.load(class_path)
    img_dim = opt.img_dim if opt["img_dim"].present else None
    references = arrays.load_references(
        os.path.join(opt.data_dir, "ref.npy"), num_classes=len(names), img_dim=img_dim, embed_norm=opt.embed_norm,
        num_ref=opt.num_ref if opt["num_ref"].present else None,
    )
    common = {"num_classes": len(names), "img_dim": references.shape[2], "embed_norm": opt.embed_norm}
    train, val = (
        arrays.FeatureArray(os.path.join(opt.data_dir, f"{split}.npy"), verified=True, **common) for split in ("train", "val")
    )
    unverified = None
    if opt.batch_size_unsup:
        unverified = arrays.FeatureArray(os.path.join(opt.data_dir, "all.npy"), verified=False, grouped=True, **common)
    if len(np.unique(val.labels)) < 2:
        one_kind = f"{val.path}: all its rows are labelled {val.labels[0]}"
        if metrics.parse_threshold(opt.val_sim_thres) is None:
            raise UserError(f"{one_kind}, so --val_sim_thres=auto has nothing to choose by; verify rows of both kinds")
        warn(f"{one_kind}; accuracy on them says little, verify rows of both kinds")
    return names, train, val, unverified, references


def usable_classes(names, unverified, references, skip_empty_classes, data_dir):
    """bool [C]: the classes that have rows in all.npy and references. Others are an error unless skip_empty_classes."""
    usable = arrays.classes_with_references(references)
    if unverified is not None:
        usable &= np.diff(unverified.first) > 0
    if not usable.all() and not skip_empty_classes:
        empty = [names[c] for c in np.flatnonzero(~usable)]
        raise UserError(
            f"{data_dir}: {len(empty)} classes have no rows in all.npy or no references: {', '.join(empty[:5])}"
            f"{', …' if len(empty) > 5 else ''}; add images of them, or leave them out with --skip_empty_classes"
        )
    return usable


def rows_to_train_on(train, usable, heldout_ids):
    """Rows of train.npy that are not of held-out or unusable classes, int [N']; both kinds of label must be among them."""
    keep = usable[train.class_ids] & ~np.isin(train.class_ids, heldout_ids)
    rows = np.flatnonzero(keep)
    if len(rows) < len(keep):
        warn(f"{train.path}: {len(keep) - len(rows)} verified rows of held-out or empty classes are not trained on")
    for label, kind in ((1, "correct"), (0, "mislabeled")):
        if not (train.labels[rows] == label).any():
            raise UserError(
                f"{train.path}: none of the {len(rows)} verified rows to train on is labelled {label} ({kind}); "
                "training needs both kinds, verify more rows"
            )
    return rows


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
        train: arrays.FeatureArray with labels. unverified: arrays.FeatureArray grouped by class, or None if batch_size_unsup is 0.
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
