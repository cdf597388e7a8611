"""Trains a classifier on weighted rows, with exact resume, and computes the probabilities of rows.

A module of its own because train_classifier.py tells what is trained on what, and this how.
"""
import sys
import zipfile
import zlib

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

import data_loader
from util.lib import atomic, threads
from util.lib.errors import UserError, warn
from util.lib.train_step import call_bounds

LOGITS, PROBABILITIES = "logits", "probabilities"  # names of the last two layers
PREDICT_ROWS = 1024  # rows per batch
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
    x = keras.layers.Dropout(dropout_rate, seed=seed)(x)
    initial = keras.initializers.GlorotUniform(seed + 1)
    logits = keras.layers.Dense(num_classes, kernel_initializer=initial, name=LOGITS)(x)
    return keras.Model(features, keras.layers.Softmax(name=PROBABILITIES)(logits))


class Batches:
    """The batches of a training: its rows in shuffled epochs, a full batch per step.

    Args:
        part: train_classifier.Part. inputs_of: function of rows, int [B], to the inputs of the net. class_ids: int32 [N].
        weights: float32 [N].
    """

    def __init__(self, part, inputs_of, class_ids, weights, *, batch_size, seed):
        self._rows, self._inputs_of, self._size = part.rows, inputs_of, batch_size
        self._class_ids, self._weights = class_ids, weights / weights[part.rows].mean(dtype=np.float64)
        self._epochs = data_loader.Epochs(len(part.rows), [seed, part.number])

    def steps_at_once(self):
        """How many steps one call may train, so that memory is bounded."""
        return max(1, AT_ONCE // (self._size * self._inputs_of(self._rows[:1]).nbytes))

    def chunk(self, first, last):
        """The batches of steps first .. last - 1: inputs [K, B, ...], class ids int32 [K, B], weights float32 [K, B] of mean 1."""
        drawn = self._rows[self._epochs.draw(first * self._size, (last - first) * self._size)].reshape(-1, self._size)
        drawn.sort(axis=1)  # in the order of the file, which reads faster
        inputs = np.stack([self._inputs_of(rows) for rows in drawn])
        return inputs, self._class_ids[drawn], np.float32(self._weights[drawn])


class Trainer:
    """Trains a net, several steps per call.

    Args:
        net: keras.Model whose last two layers are those of make_head. n_step: int, steps until the learning rate is 0, by a cosine.
    """

    def __init__(self, net, *, learning_rate, weight_decay, n_step, label_smoothing):
        self.net, self._smoothing = net, label_smoothing
        self._to_logits = keras.Model(net.inputs, net.get_layer(LOGITS).output)
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
            with tf.GradientTape() as tape:
                log_p = tf.nn.log_softmax(self._to_logits(inputs[k], training=True))  # [B, C]
                own = tf.gather(log_p, class_ids[k], batch_dims=1)  # [B]
                loss = -(1 - self._smoothing) * own - self._smoothing * tf.reduce_mean(log_p, axis=1)
                loss = tf.reduce_mean(weights[k] * loss)
            self._optimizer.apply(tape.gradient(loss, self.net.trainable_variables), self.net.trainable_variables)
            right = tf.reduce_mean(tf.cast(tf.argmax(log_p, axis=1, output_type=tf.int32) == class_ids[k], tf.float32))
            results = results.write(k, tf.stack([loss, right]))
        return results.stack()  # [K, 2]

    def is_finite(self):
        """Whether all weights are finite numbers."""
        return all(np.isfinite(weight).all() for weight in self.net.get_weights())

    def _variables(self):
        return [*self.net.variables, *self._optimizer.variables]  # the state of dropout's generator among them

    def save(self, path, part, step):
        """Writes the whole state after a step of a part, whole or not at all."""
        with atomic.whole_file(path) as file:
            np.savez(file, at=np.array([part.number, step]), **{f"v{i}": v.numpy() for i, v in enumerate(self._variables())})

    def restore(self, path, part):
        """Reads what save() wrote. Returns the step: 0 where there is no state of this part, or none that can be read."""
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as state:
                number, step = state["at"].tolist()
                if number != part.number:
                    return 0
                values = [state[f"v{i}"] for i in range(len(self._variables()))]
                if [value.shape for value in values] != [tuple(variable.shape) for variable in self._variables()]:
                    raise ValueError("of another shape")
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            warn(f"{path}: cannot be read ({str(error)[:100]}); {part.name} starts anew")
            return 0
        for variable, value in zip(self._variables(), values):
            variable.assign(value)
        return step


def train(trainer, batches, part, *, n_step, state_path, save_interval, log_interval, log, stop):
    """Trains a part to step n_step, from its saved state if there is one. Ends the process where a signal asks for it.

    Args:
        trainer: Trainer. batches: Batches. part: train_classifier.Part. state_path: of the state, saved every save_interval steps.
        log: tensorboard_log.TensorBoardLog. stop: list; a signal number in it ends the training after the running call.
    """
    step, values = trainer.restore(state_path, part), []
    bounds = call_bounds(step, n_step, save_interval, log_interval, batches.steps_at_once())
    chunks = threads.in_order(lambda bound: (*bound, *batches.chunk(*bound)), bounds, 1)
    with tqdm(total=n_step, initial=step, desc=part.name, unit="step", disable=None) as bar:
        for first, last, *chunk in chunks:
            values.append(trainer(*chunk))
            if not np.isfinite(values[-1]).all() or (last == n_step and not trainer.is_finite()):
                raise UserError(
                    f"{part.name}, step {first} or later: the loss is not finite; give a lower --learning_rate, or another --normalise"
                )
            bar.update(last - first)
            if last % log_interval == 0 or last == n_step:
                loss, accuracy = np.concatenate(values).mean(axis=0)
                log.scalars("train", last, {f"{part.name}/loss": loss, f"{part.name}/accuracy": accuracy})
                bar.set_postfix(loss=f"{loss:.3f}")
                values = []
            if stop or (last % save_interval == 0 and last < n_step):
                trainer.save(state_path, part, last)
            if stop:
                print(f"stopped at step {last} of {part.name}, saved; the same command resumes there")
                sys.exit(128 + stop[0])  # as shells report a signal


def probabilities(net, inputs_of, rows, description):
    """Yields the probabilities of rows, float32 [n, C], block by block. rows: int [N]. inputs_of: as in Batches."""
    predict = tf.function(lambda inputs: net(inputs, training=False), reduce_retracing=True)
    starts = range(0, len(rows), PREDICT_ROWS)
    with tqdm(total=len(rows), desc=description, unit="row", unit_scale=True, disable=None, delay=1) as bar:
        for inputs in threads.in_order(lambda start: inputs_of(rows[start : start + PREDICT_ROWS]), starts, 1):
            found = predict(inputs).numpy()
            if not np.isfinite(found).all():  # of features much larger than those that were trained on
                raise UserError(f"{description}: probabilities that are not finite; check the scale of these features")
            yield found
            bar.update(len(found))
