"""What is trained: one classifier per fold without its rows, and one on all rows, each in stages.

A module of its own because train_classifier.py is about what a user asks for, and this about the order of the work.
"""
import contextlib
import os
from typing import NamedTuple

import numpy as np

from util.lib import atomic, classifier_data, command, networks
from util.lib.errors import UserError

FILES = "state-*.npz", "fold-*.npy", "soft-*.npy", "model.keras"  # patterns of what a training keeps in its progress folder


class Part(NamedTuple):
    """The training of one classifier. number: int, from 0. name: in words. rows: int [n], to train on."""

    number: int
    name: str
    rows: np.ndarray


class Stage(NamedTuple):
    """A stage of each training. trained: the first layer of the network that learns, None: none of it, "": all, or no network."""

    name: str
    n_epoch: int
    learning_rate: float
    trained: str | None = ""


def make_stages(of_images, *, n_epoch, n_epoch_head, learning_rate, finetune_rate, finetune_from):
    """The stages of each training, a list of Stage. of_images: bool. The others are flags."""
    if not of_images:
        return [Stage("", n_epoch, learning_rate)]
    head = [Stage(", the last layer", n_epoch_head, learning_rate, None)] if n_epoch_head else []
    return [*head, Stage(", fine-tuning", n_epoch, finetune_rate, finetune_from or "")]


def make_parts(fold, weights, output_file, of_pass=""):
    """The trainings: one per fold, without its rows, and one on all rows.

    Args:
        fold: int [N], or None. weights: float32 [N]. output_file: the flag, None: no training on all rows. of_pass: which pass, in words.
    """
    folds = range(0 if fold is None else fold.max() + 1)
    parts = [Part(k, f"fold {k + 1} of {len(folds)}{of_pass}", np.flatnonzero((weights > 0) & (fold != k))) for k in folds]
    if output_file:
        parts.append(Part(len(folds), "all rows", np.flatnonzero(weights > 0)))
    for part in parts:
        if not len(part.rows):
            raise UserError(f"--folds={len(folds)}: {part.name} leaves no row of weight above 0 to train on; give fewer folds")
    return parts


def write_blocks(path, blocks, shape):
    """Writes blocks of rows, float32 [n, C], as a .npy file of a shape (N, C), whole or not at all."""
    with atomic.whole_file(path) as file:
        file.write(atomic.npy_header(shape))
        for block in blocks:
            file.write(np.ascontiguousarray(block).data)


def net_maker(data, *, normalise, hidden_units, dropout_rate, seed, model, network_weights, keras_model, layer, crop, mixed_precision):
    """A function that makes a new classifier: (the net; the network in it that may be fine-tuned, or None). The arguments are flags."""
    from util.lib import classifier

    num_classes, statistics = len(data.class_names), None

    def make_for_images():
        network, preprocess, _ = networks.load_network(
            model=model, weights=network_weights, keras_model=keras_model, layer=layer, crop=crop
        )
        return classifier.make_image_classifier(network, preprocess, crop, num_classes, dropout_rate=dropout_rate, seed=seed), network

    def make_for_features():
        return classifier.make_head(
            data.source.img_dim, num_classes, normalise=normalise, statistics=statistics, hidden_units=hidden_units,
            dropout_rate=dropout_rate, seed=seed,
        ), None

    if isinstance(data.source, classifier_data.ImageRows):
        classifier.set_precision(mixed_precision)
        return make_for_images
    normalise, statistics = data.source.statistics(normalise)
    return make_for_features


def train_passes(passes, stages, make_net, data, fold, progress, *, label, output_file, strategy, **options):
    """Trains the folds in passes. Each pass but the first weights a row by the probability, out of fold, that the one before gave it.

    Args:
        passes: int. data: classifier_data.Data of the first pass. fold: int [N], or None. progress: ProgressFolder.
        label: function of such probabilities, float32 [N], that makes the sample_weights.Rows of a pass. output_file: the flag; the last
            pass trains the classifier on all rows too. The others are as in train_parts.

    Returns:
        (the last classifier, a keras.Model, or None where nothing was left to train; classifier.OutOfFold of the last pass, or None
        without folds, and where another process writes them).
    """
    from util.lib import classifier, devices

    stop = command.stop_on_signals()

    def train_pass(number, output_file):
        parts = make_parts(fold, data.rows.weights, output_file, f", pass {number + 1}" if passes > 1 else "")
        net = train_parts(parts, stages, make_net, data, fold, progress, number, strategy=strategy, stop=stop, **options)
        return net, None if fold is None or not progress.writes else classifier.OutOfFold(
            lambda k: fold_path(progress, number, k), fold, len(data.class_names)
        )

    for number in range(passes - 1):
        soft = progress.file(f"soft-{number}.npy")
        if not os.path.exists(soft):
            found = train_pass(number, None)[1]
            if found:
                atomic.write_npy(soft, found.of(data.rows.given))
            del found  # or the files below, which it has open, would still take room
        devices.wait_for_all(strategy)
        for k in range(fold.max() + 1) if progress.writes else ():  # they are large where there are many classes
            with contextlib.suppress(FileNotFoundError):
                os.remove(fold_path(progress, number, k))
        print(f"pass {number + 1} of {passes} is done, and weights the next one")
        data = data._replace(rows=label(np.array(classifier.kept_array(soft, (len(fold),)))))
    return train_pass(passes - 1, output_file)


def fold_path(progress, number, k):
    """Where the probabilities of fold k are kept in a pass. number: int, of the pass, from 0."""
    return progress.file(f"fold-{number}-{k}.npy")


def train_parts(
    parts, stages, make_net, data, fold, progress, number, *, strategy, stop, batch_size, weight_decay, label_smoothing, seed, **options
):
    """Trains what is not trained yet in a pass, and keeps the probabilities of each fold.

    Args:
        parts: list of Part. stages: list of Stage. make_net: of net_maker. data: classifier_data.Data. fold: int [N], or None.
        progress: ProgressFolder. number: int, of the pass, from 0. strategy: tf.distribute strategy of the trainings.
        stop, options: of classifier.train. The others are flags.

    Returns:
        The last classifier, a keras.Model, or None where nothing was left to train.
    """
    from util.lib import classifier

    net = None
    for part in parts:
        path = fold_path(progress, number, part.number)
        if os.path.exists(path):
            continue
        with strategy.scope():
            net, network = make_net()
        for stage in stages if network else ():
            classifier.set_trainable(network, stage.trained)  # a layer that does not exist is an error before any work
        for i, stage in enumerate(stages):
            if network:
                classifier.set_trainable(network, stage.trained)
            n_step = -(-stage.n_epoch * len(part.rows) // batch_size)
            trainer = classifier.Trainer(
                net, n_step=n_step, learning_rate=stage.learning_rate, weight_decay=weight_decay, label_smoothing=label_smoothing,
                strategy=strategy,
            )
            batches = classifier.Batches(
                part.rows, data.source.inputs, data.rows.class_ids, data.rows.weights, batch_size=batch_size, seed=[seed, part.number, i]
            )
            state_path = progress.file(f"state-{number}-{part.number}-{i}.npz")
            classifier.train(
                trainer, batches, part.name + stage.name, n_step=n_step, state_path=state_path, writes=progress.writes, stop=stop, **options
            )
        if progress.writes and fold is not None and part.number <= fold.max():
            of_fold = np.flatnonzero(fold == part.number)
            found = classifier.probabilities(net, data.source.inputs, of_fold, f"scoring {part.name}")
            write_blocks(path, found, (len(of_fold), len(data.class_names)))
            for i in range(len(stages)):
                os.remove(progress.file(f"state-{number}-{part.number}-{i}.npz"))
    return net
