"""What batches look like: verified rows in shuffled epochs, unverified rows by class (docs/method.md, "Sampling").

    python train.py --data_dir=data

Which rows a step gets depends on (seed, step) alone, so a resumed run sees the batches of an uninterrupted one. Rows are
read from their files when they are needed: only the batches of a few steps are in memory.
"""
import os
from typing import NamedTuple

import numpy as np

from util.lib import arrays, class_list, threads
from util.lib.errors import UserError, counted, warn

VERIFIED, UNVERIFIED = 0, 1  # streams of random numbers


class TrainingData(NamedTuple):
    """All that a training reads, checked.

    class_names: list of str [C]. references: float32 [C, R, D]. train, val: arrays.FeatureArray with labels, or None: without
    verified rows.
    unverified: arrays.FeatureArray grouped by class, or None. heldout_ids: list of int, ascending.
    usable: bool [C], classes with references and, where unverified rows are read, with such rows.
    trained_on: int [N'], indices of the rows of `train` to draw from. embed_norm: one of arrays.EMBED_NORMS. embed_scale: float, of
    scaled_log, or None.
    """

    class_names: list
    references: np.ndarray
    train: arrays.FeatureArray | None
    val: arrays.FeatureArray | None
    unverified: arrays.FeatureArray | None
    heldout_ids: list
    usable: np.ndarray
    trained_on: np.ndarray
    embed_norm: str = "log"
    embed_scale: float | None = None

    def in_words(self):
        """How much there is of everything, for one line of output."""
        return (
            f"{len(self.trained_on)} verified rows, {self.unverified.num_rows if self.unverified else 0} unverified, "
            f"{len(self.class_names)} classes ({len(self.heldout_ids)} held out)"
        )

    def advise_on_few_rows(self, *, batch_size_sup, class_contrast):
        """Prints a line of advice where verified rows come so often that they are learnt by heart.

        docs/choosing.md has measured it with up to 500 rows for batches of 32, with the class contrast.
        """
        few = class_contrast and 0 < len(self.trained_on) < 16 * batch_size_sup
        better = max(2, len(self.trained_on) // 50)
        if few and better < batch_size_sup:
            rows = counted(len(self.trained_on), "verified row")
            print(f"{rows} are few for --batch_size_sup={batch_size_sup}: {better} was better in such cases")


def load(
    data_dir, *, embed_norm, heldout_class_list=None, img_dim=None, num_ref=None, with_verified=True, with_unverified=True,
    skip_empty_classes=False, choose_threshold=False,
):
    """Opens and checks everything that training reads.

    Args:
        data_dir: folder of the arrays. embed_norm: one of arrays.EMBED_NORMS, which the features must allow, or auto.
        heldout_class_list: path of a held-out list, or None. img_dim, num_ref: int that the data must have, or None.
        with_verified: read train.npy, and val.npy must be there; False: val.npy is read if it is there.
        with_unverified: read all.npy. skip_empty_classes: leave classes without rows or references out; else an error.
        choose_threshold: validation is to choose the threshold, which needs val.npy to hold rows of both labels.

    Returns:
        TrainingData.
    """
    if not os.path.isdir(data_dir):
        raise UserError(f"{data_dir}: no such folder; give the folder of the converted data as --data_dir")
    names = class_list.load(os.path.join(data_dir, "classes.txt"))
    references = arrays.load_references(
        os.path.join(data_dir, "ref.npy"), num_classes=len(names), img_dim=img_dim, num_ref=num_ref, embed_norm=embed_norm
    )

    def open_array(split, **options):
        return arrays.FeatureArray(
            os.path.join(data_dir, f"{split}.npy"), class_names=names, img_dim=references.shape[2], embed_norm=embed_norm,
            **options,
        )

    train = open_array("train", verified=True) if with_verified else None
    has_val = with_verified or os.path.exists(os.path.join(data_dir, "val.npy"))
    val = open_array("val", verified=True) if has_val else None
    unverified = open_array("all", verified=False, grouped=True) if with_unverified else None
    if embed_norm == "auto":
        embed_norm = _suitable_norm(references, [array for array in (train, val, unverified) if array])
    arrays.check_references_checksum(data_dir, references, names, unverified)
    heldout_ids = class_list.heldout_ids(heldout_class_list, names)
    usable = _usable_classes(names, unverified, references, skip_empty_classes, data_dir)
    trained_on = np.empty(0, np.int64)
    if train is not None:
        _check_no_shared_rows(train, val)
        trained_on = _rows_to_train_on(train, usable, heldout_ids)
        _warn_of_classes_without_rows(train, trained_on, usable, names, heldout_ids)
    if val is not None:
        _check_validation_rows(val, usable[val.class_ids] & ~np.isin(val.class_ids, heldout_ids), choose_threshold)
    embed_scale = arrays.scale_for(references) if embed_norm == "scaled_log" else None
    return TrainingData(names, references, train, val, unverified, heldout_ids, usable, trained_on, embed_norm, embed_scale)


def _suitable_norm(references, opened):
    """Prints and returns log where the features suit it, else scaled_log. opened: FeatureArrays."""
    lowest, mean = min(references.min(), *(array.lowest for array in opened)), references.mean()
    suitable = "log" if arrays.suit_log(lowest, mean) else "scaled_log"
    print(f"--embed_norm=auto: {suitable}, since the lowest feature is {lowest:.3g} and the mean of the references {mean:.3g}")
    return suitable


def _warn_of_classes_without_rows(train, trained_on, usable, names, heldout_ids):
    """Warns of usable classes that have no verified row and are not held out either."""
    without = np.flatnonzero(usable & (np.bincount(train.class_ids[trained_on], minlength=len(names)) == 0))
    if len(without) and not heldout_ids:
        warn(
            f"{train.path}: {counted(len(without), 'class')} without a verified row: {names[without[0]]}"
            f"{', …' if len(without) > 1 else ''}; "
            "name them in a --heldout_class_list and give --class_embedding=auto, which serves them better"
        )


def _check_validation_rows(val, kept, choose_threshold):
    """Raises UserError where the rows of kept classes, bool [N], cannot choose a checkpoint, or a threshold where they are to."""
    if not kept.any():
        raise UserError(
            f"{val.path}: no row is of a class that is kept, so no checkpoint could be chosen; verify rows of kept classes"
        )
    labels = val.labels[kept]
    if len(np.unique(labels)) < 2:
        one_kind = f"{val.path}: all its rows {'of kept classes ' if not kept.all() else ''}are labelled {labels[0]}"
        if choose_threshold:
            raise UserError(f"{one_kind}, so --val_sim_thres=auto has nothing to choose by; verify rows of both kinds")
        warn(f"{one_kind}; accuracy on them says little, verify rows of both kinds")


def _check_no_shared_rows(train, val):
    """Raises UserError where rows of val.npy are in train.npy too, by their keys: their error would be too low."""
    known = set(train.sample_keys())
    shared = [key for key in val.sample_keys() if key in known]
    if shared:
        raise UserError(
            f"{val.path}: {counted(len(shared), 'row')} with a key that {train.path} has too, {shared[0]!r} for one; "
            "validation needs rows that training does not see, so leave them out of one of the two"
        )


def _usable_classes(names, unverified, references, skip_empty_classes, data_dir):
    """bool [C]: the classes that have rows in all.npy and references. Others are an error unless skip_empty_classes."""
    usable = arrays.classes_with_references(references)
    if unverified is not None:
        usable &= np.diff(unverified.first) > 0
    if not usable.all() and not skip_empty_classes:
        empty = [names[c] for c in np.flatnonzero(~usable)]
        raise UserError(
            f"{data_dir}: {counted(len(empty), 'class')} without rows in all.npy or without references: {', '.join(empty[:5])}"
            f"{', …' if len(empty) > 5 else ''}; add images of them, or leave them out with --skip_empty_classes"
        )
    return usable


def _rows_to_train_on(train, usable, heldout_ids):
    """Indices of the rows of train.npy in usable classes that are not held out, int [N']; both labels must be among them."""
    keep = usable[train.class_ids] & ~np.isin(train.class_ids, heldout_ids)
    indices = np.flatnonzero(keep)
    if len(indices) < len(keep):
        left_out = counted(len(keep) - len(indices), "verified row")
        warn(f"{train.path}: {left_out} of held-out or empty classes left out of training")
    for label, kind in ((1, "correct"), (0, "mislabeled")):
        if not (train.labels[indices] == label).any():
            raise UserError(
                f"{train.path}: none of the {len(indices)} verified rows to train on is labelled {label} ({kind}); "
                "training needs both kinds, verify more rows"
            )
    return indices


class Chunk(NamedTuple):
    """Batches of K consecutive steps, each of B rows: the verified ones, then the unverified ones.

    features: float32 [K, B, D]. class_ids: int32 [K, B]. labels: float32 [K, B], 1 = label correct, 0 = mislabeled; unused
    for unverified rows. verified: float32 [B], 1 for a row of train.npy, 0 for a row of all.npy.
    """

    features: np.ndarray
    class_ids: np.ndarray
    labels: np.ndarray
    verified: np.ndarray


class Epochs:
    """Draws numbers in shuffled epochs without replacement. total: how many there are. seed: list of int."""

    def __init__(self, total, seed):
        self._total, self._seed, self._epoch = total, seed, (-1, None)

    def draw(self, first, count):
        """The draws number first .. first + count - 1, counted from the first of all: int64 [count], from 0 to total - 1."""
        drawn = first + np.arange(count)
        order = np.empty(count, np.int64)
        for epoch in np.unique(drawn // self._total):
            here = drawn // self._total == epoch
            order[here] = self._permutation(epoch)[drawn[here] % self._total]
        return order

    def _permutation(self, epoch):
        if self._epoch[0] != epoch:
            self._epoch = (epoch, np.random.default_rng([*self._seed, epoch]).permutation(self._total))
        return self._epoch[1]


class Batches:
    """Draws the batches of a training.

    Args:
        data: TrainingData. batch_size_sup, batch_size_unsup: int, verified and unverified rows per batch. seed: int.
    """

    def __init__(self, data, *, batch_size_sup, batch_size_unsup, seed):
        self._train, self._unverified, self._trained_on = data.train, data.unverified, data.trained_on
        self._sizes, self._seed = (batch_size_sup, batch_size_unsup), seed
        self._epochs = Epochs(len(data.trained_on), [seed, VERIFIED])
        self._classes = np.flatnonzero(data.usable)

    def verified_indices(self, step):
        """Indices into train.npy for a step, int [batch_size_sup]: in epochs without replacement, each row once per epoch."""
        return self._trained_on[self._epochs.draw(step * self._sizes[0], self._sizes[0])]

    def unverified_indices(self, step):
        """Indices into all.npy for a step, int [batch_size_unsup]: a class uniformly, then a row of it uniformly."""
        rng = np.random.default_rng([self._seed, UNVERIFIED, step])
        classes = rng.choice(self._classes, self._sizes[1])
        first, end = self._unverified.first[classes], self._unverified.first[classes + 1]
        return rng.integers(first, end)

    def chunk(self, first, last):
        """The Chunk of steps first .. last - 1."""
        sup, unsup = self._sizes
        steps, size = last - first, sup + unsup
        features = np.empty((steps, size, (self._train or self._unverified).img_dim), np.float32)
        class_ids, labels = np.empty((steps, size), np.int32), np.zeros((steps, size), np.float32)
        for k in range(steps):
            if sup:
                index = self.verified_indices(first + k)
                features[k, :sup], class_ids[k, :sup] = self._train.features[index], self._train.class_ids[index]
                labels[k, :sup] = self._train.labels[index]
            if unsup:
                index = np.sort(self.unverified_indices(first + k))  # in the order of the file, which reads faster
                features[k, sup:], class_ids[k, sup:] = self._unverified.features[index], self._unverified.class_ids[index]
        verified = np.repeat(np.float32([1, 0]), self._sizes)
        return Chunk(features, class_ids, labels, verified)

    def chunks(self, bounds):
        """Yields (first, last, Chunk) for each (first, last) of an iterable, and gathers the next chunks meanwhile."""
        return threads.in_order(lambda bound: (*bound, self.chunk(*bound)), bounds, 1)
