"""Trains a classifier on weighted rows, with exact resume, and computes the probabilities of rows.

A module of its own because train_classifier.py tells what is trained on what, and this how.
"""
import os
import sys
import zipfile
import zlib

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

import data_loader
from util.lib import atomic, class_list, devices, score_table, threads
from util.lib.errors import UserError, warn
from util.lib.train_step import call_bounds

FEATURE, LOGITS, PROBABILITIES = "feature", "logits", "probabilities"  # names of layers, the last two among them
PREDICT_ROWS = 1024  # rows per batch
ORDER, AUGMENT = 0, 1  # streams of random numbers
AT_ONCE = 32 << 20  # bytes of the batches that one call trains, where one batch is not larger


def make_head(img_dim, num_classes, *, normalise, statistics, hidden_units, dropout_rate, seed):
    """A classifier of features: float32 [B, img_dim] -> probabilities, float32 [B, num_classes].

    Args:
        normalise: log, l2_norm or standardise. statistics: (mean, variance) of the features, float32 [img_dim], or None: unused.
        hidden_units: of the hidden layer; 0: none. dropout_rate: share of the hidden units, or of the features, that a step drops.
    """
    features = keras.Input((img_dim,), name="feature")
    if normalise == "log":
        x = keras.ops.log1p(features)
    elif normalise == "standardise":
        x = keras.layers.Normalization(mean=statistics[0], variance=statistics[1])(features)
    else:  # each number about 1, whatever their count, so that one learning rate suits all
        x = keras.layers.Rescaling(img_dim**0.5)(keras.layers.UnitNormalization()(features))
    if hidden_units:
        initial = keras.initializers.GlorotUniform(seed)
        x = keras.layers.Dense(hidden_units, activation="relu", kernel_initializer=initial, name="hidden")(x)
    return keras.Model(features, _last_layers(x, num_classes, dropout_rate, seed))


def make_image_classifier(network, preprocess, crop, num_classes, *, dropout_rate, seed):
    """A classifier of images: RGB pixels from 0 to 255, [B, crop, crop, 3] -> probabilities, float32 [B, num_classes].

    What its layer `feature` gives is the network's output. network, preprocess: of networks.load_network.
    """
    pixels = keras.Input((crop, crop, 3), name="pixels")
    # Preprocessing is the same affine map of the colours of each pixel, so it becomes a layer, which the saved model keeps.
    colours = np.concatenate([np.zeros((1, 3)), np.eye(3)]).astype(np.float32)[:, None, None]  # black, red, green, blue
    found = np.asarray(preprocess(colours), np.float64).reshape(4, 3)
    kernel, bias = found[1:] - found[0], found[0]
    if network.inputs[0].shape[-1] == 1:  # grey
        kernel, bias = kernel.mean(axis=1, keepdims=True), bias.mean(keepdims=True)
    layer = keras.layers.Dense(len(bias), trainable=False, name="preprocessing", dtype="float32")
    x = layer(pixels)
    layer.set_weights([np.float32(kernel), np.float32(bias)])
    x = keras.layers.Identity(name=FEATURE, dtype="float32")(network(x))
    return keras.Model(pixels, _last_layers(x, num_classes, dropout_rate, seed))


def _last_layers(x, num_classes, dropout_rate, seed):
    x = keras.layers.Dropout(dropout_rate, seed=seed, dtype="float32")(x)
    initial = keras.initializers.GlorotUniform(seed + 1)
    logits = keras.layers.Dense(num_classes, kernel_initializer=initial, name=LOGITS, dtype="float32")(x)
    return keras.layers.Softmax(name=PROBABILITIES, dtype="float32")(logits)


def set_precision(mixed):
    """Whether the networks that are made from now on compute in bfloat16, which needs no scaling of the loss."""
    keras.mixed_precision.set_global_policy("mixed_bfloat16" if mixed else "float32")


def layers_of(net):
    """The layers of a model in their order, those of models within it one by one."""
    for layer in net.layers:
        yield from layers_of(layer) if isinstance(layer, keras.Model) else [layer]


def set_trainable(network, first):
    """Lets the layers of a network train from the one named `first` on, and no other. None: no layer; "": all of them."""
    names = [layer.name for layer in layers_of(network)]
    if first and first not in names:
        raise UserError(
            f"--finetune_from={first}: the network has no such layer{class_list.closest(first, names)}; its last layers: "
            f"{', '.join(names[-10:])}"
        )
    start = len(names) if first is None else names.index(first) if first else 0
    for i, layer in enumerate(layers_of(network)):
        layer.trainable = i >= start and layer.name != "preprocessing"


class Batches:
    """The batches of a training: its rows in shuffled epochs, a full batch per step.

    Args:
        rows: int [n], to train on. inputs_of: function of rows, int [B], and a numpy Generator, to the inputs of the net.
        class_ids: int32 [N]. weights: float32 [N]. seed: list of int.
    """

    def __init__(self, rows, inputs_of, class_ids, weights, *, batch_size, seed):
        self._rows, self._inputs_of, self._size, self._seed = rows, inputs_of, batch_size, seed
        self._class_ids, self._weights = class_ids, weights / weights[rows].mean(dtype=np.float64)
        self._epochs = data_loader.Epochs(len(rows), [*seed, ORDER])

    def steps_at_once(self):
        """How many steps one call may train, so that memory is bounded."""
        return max(1, AT_ONCE // (self._size * self._inputs_of(self._rows[:1]).nbytes))

    def chunk(self, first, last):
        """The batches of steps first .. last - 1: inputs [K, B, ...], class ids int32 [K, B], weights float32 [K, B] of mean 1."""
        drawn = self._rows[self._epochs.draw(first * self._size, (last - first) * self._size)].reshape(-1, self._size)
        drawn.sort(axis=1)  # in the order of the file, which reads faster
        steps = zip(drawn, range(first, last))
        inputs = np.stack([self._inputs_of(rows, np.random.default_rng([*self._seed, AUGMENT, step])) for rows, step in steps])
        return inputs, self._class_ids[drawn], np.float32(self._weights[drawn])


class Trainer:
    """Trains a net, several steps per call.

    Args:
        net: keras.Model whose last two layers are those of make_head, made under the strategy. n_step: int, steps until the learning
            rate is 0, by a cosine. strategy: tf.distribute strategy whose replicas share each batch.
    """

    def __init__(self, net, *, learning_rate, weight_decay, n_step, label_smoothing, strategy):
        self.net, self._smoothing, self._strategy = net, label_smoothing, strategy
        self._to_logits = keras.Model(net.inputs, net.get_layer(LOGITS).output)
        with strategy.scope():
            rates = keras.optimizers.schedules.CosineDecay(learning_rate, n_step)
            self._optimizer = keras.optimizers.AdamW(rates, weight_decay=weight_decay)
            self._optimizer.exclude_from_weight_decay(var_names=["bias"])
            self._optimizer.build(net.trainable_variables)
        self._compiled = tf.function(self._train, reduce_retracing=True)

    def __call__(self, inputs, class_ids, weights):
        """Trains K steps on a chunk of Batches. Returns float32 [K, 2]: the weighted loss and the share of right classes per step."""
        return self._compiled(inputs, class_ids, weights).numpy()

    def _train(self, inputs, class_ids, weights):
        results = tf.TensorArray(tf.float32, tf.shape(weights)[0], element_shape=[2])
        for k in tf.range(tf.shape(weights)[0]):
            found = self._strategy.run(self._replica_step, (inputs[k], class_ids[k], weights[k]))
            results = results.write(k, self._strategy.reduce("SUM", found, axis=None))
        return results.stack()  # [K, 2]

    def _replica_step(self, inputs, class_ids, weights):
        """One replica's part of a step, every n-th row. Returns its loss and share of right classes, float32 [2], to be summed."""
        replicas = self._strategy.num_replicas_in_sync
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        inputs, class_ids, weights = (x[replica::replicas] for x in (inputs, class_ids, weights))
        with tf.GradientTape() as tape:
            log_p = tf.nn.log_softmax(self._to_logits(tf.cast(inputs, tf.float32), training=True))  # [B, C]
            own = tf.gather(log_p, class_ids, batch_dims=1)  # [B]
            loss = -(1 - self._smoothing) * own - self._smoothing * tf.reduce_mean(log_p, axis=1)
            loss = tf.reduce_mean(weights * loss) / replicas
        self._optimizer.apply(tape.gradient(loss, self.net.trainable_variables), self.net.trainable_variables)  # summed over replicas
        right = tf.cast(tf.argmax(log_p, axis=1, output_type=tf.int32) == class_ids, tf.float32)
        return tf.stack([loss, tf.reduce_mean(right) / replicas])

    def check_same_start(self, name, step, state_path):
        """Raises UserError where workers would train other parts or from other steps, which folders that are not shared lead to."""
        devices.check_same(self._strategy, [name, step], lambda _: (
            f"{state_path}: the workers do not begin {name} at the same step; give outputs in a folder that all of them share"
        ))

    def is_finite(self):
        """Whether all weights are finite numbers."""
        return all(np.isfinite(weight).all() for weight in self.net.get_weights())

    def _variables(self):
        return [*self.net.variables, *self._optimizer.variables]  # the state of dropout's generator among them

    def save(self, path, step):
        """Writes the whole state after a step, whole or not at all."""
        with atomic.whole_file(path) as file:
            np.savez(file, step=np.array(step), **{f"v{i}": v.numpy() for i, v in enumerate(self._variables())})

    def restore(self, path):
        """Reads what save() wrote. Returns the step: 0 where there is no state, or none that can be read."""
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as state:
                step = int(state["step"])
                values = [state[f"v{i}"] for i in range(len(self._variables()))]
                if [value.shape for value in values] != [tuple(variable.shape) for variable in self._variables()]:
                    raise ValueError("of another shape")
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            warn(f"{path}: cannot be read ({str(error)[:100]}); this part of the training starts anew")
            return 0
        for variable, value in zip(self._variables(), values):
            variable.assign(value)
        return step


def train(trainer, batches, name, *, n_step, state_path, writes, save_interval, log_interval, log, stop):
    """Trains to step n_step, from the saved state if there is one. Ends the process where a signal asks for it.

    Args:
        trainer: Trainer. batches: Batches. name: what is trained, in words. state_path: of the state, saved every save_interval steps
            and at the end, if this process writes. log: tensorboard_log.TensorBoardLog. stop: list; a signal number in it ends the
            training after the running call.
    """
    step, values = trainer.restore(state_path), []
    trainer.check_same_start(name, step, state_path)
    bounds = call_bounds(step, n_step, save_interval, log_interval, batches.steps_at_once())
    chunks = threads.in_order(lambda bound: (*bound, *batches.chunk(*bound)), bounds, 1)
    with tqdm(total=n_step, initial=step, desc=name, unit="step", disable=None if writes else True) as bar:
        for first, last, *chunk in chunks:
            values.append(trainer(*chunk))
            if not np.isfinite(values[-1]).all() or (last == n_step and not trainer.is_finite()):
                raise UserError(
                    f"{name}, step {first} or later: the loss is not finite; give a lower --learning_rate, or another --normalise"
                )
            bar.update(last - first)
            if last % log_interval == 0 or last == n_step:
                loss, accuracy = np.concatenate(values).mean(axis=0)
                log.scalars("train", last, {f"{name}/loss": loss, f"{name}/accuracy": accuracy})
                bar.set_postfix(loss=f"{loss:.3f}")
                values = []
            if writes and (stop or last % save_interval == 0 or last == n_step):
                trainer.save(state_path, last)
            if stop:
                print(f"stopped at step {last} of {name}, saved; the same command resumes there")
                sys.exit(128 + stop[0])  # as shells report a signal


def probabilities(net, inputs_of, rows, description):
    """Yields the probabilities of rows, float32 [n, C], block by block. rows: int [N]. inputs_of: as in Batches."""
    predict = tf.function(lambda inputs: net(tf.cast(inputs, tf.float32), training=False), reduce_retracing=True)
    at_once = min(PREDICT_ROWS, max(1, AT_ONCE // inputs_of(rows[:1]).nbytes))
    starts = range(0, len(rows), at_once)
    with tqdm(total=len(rows), desc=description, unit="row", unit_scale=True, disable=None, delay=1) as bar:
        for inputs in threads.in_order(lambda start: inputs_of(rows[start : start + at_once]), starts, 1):
            found = predict(inputs).numpy()
            if not np.isfinite(found).all():  # of features much larger than those that were trained on
                raise UserError(f"{description}: probabilities that are not finite; check the scale of these features")
            yield found
            bar.update(len(found))


def kept_array(path, shape):
    """A float32 array that a training has kept in its progress folder, which stays in its file. Raises UserError for another one."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        array = None
    if array is None or array.shape != shape or array.dtype != np.float32:
        raise UserError(f"{path}: is damaged, expected float32 {shape}; remove the folder {os.path.dirname(path)} and start again")
    return array


class OutOfFold:
    """Out-of-fold probabilities, read block by block from an array per fold.

    Args:
        path_of: function of a fold. fold: int [N]. num_classes: int.
    """

    def __init__(self, path_of, fold, num_classes):
        rows = np.bincount(fold)
        self._fold, self._arrays = fold, [kept_array(path_of(k), (rows[k], num_classes)) for k in range(len(rows))]
        self.shape = len(fold), num_classes
        self._index = np.empty(len(fold), np.int64)  # of each row, in the array of its fold
        for k in range(len(self._arrays)):
            self._index[fold == k] = np.arange(np.count_nonzero(fold == k))

    def blocks(self):
        """Yields (first row, float32 [n, C])."""
        for start in range(0, len(self._fold), PREDICT_ROWS):
            part = slice(start, start + PREDICT_ROWS)
            block = np.empty((len(self._fold[part]), self.shape[1]), np.float32)
            for k, array in enumerate(self._arrays):
                here = self._fold[part] == k
                block[here] = array[self._index[part][here]]
            yield start, block

    def of(self, class_ids):
        """The probabilities of some classes, one per row: int [N] -> float32 [N]."""
        return np.concatenate([block[np.arange(len(block)), class_ids[start : start + len(block)]] for start, block in self.blocks()])

    def scored_rows(self, keys, class_ids, probability=None):
        """Yields the blocks as score_table.ScoredRows. A classifier has no cosines.

        Args:
            keys: list of str [N]. class_ids: int [N], the given classes. probability: float [N], of these; None: as they are. The margins
                are always of these as they are.
        """
        for start, block in self.blocks():
            part = slice(start, start + len(block))
            here, nothing = np.arange(len(block)), np.full(len(block), np.nan, np.float32)
            own, nearest = block[here, class_ids[part]], block.argmax(axis=1).astype(np.int32)
            others = block.copy()
            others[here, class_ids[part]] = -1
            shown = own if probability is None else probability[part]
            scores = score_table.Scores(nothing, own - others.max(axis=1), shown, nearest, nothing)
            yield score_table.ScoredRows(keys[part], class_ids[part], scores)
