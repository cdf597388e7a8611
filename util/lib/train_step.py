"""The compiled training step: what one call of TensorFlow does, the learning rates it is given, and the check of its losses.

A module of its own because train.py, the golden test and the benchmark run the same step.
"""
import numpy as np
import tensorflow as tf

import model
from util.lib import arrays
from util.lib.errors import UserError

STEPS_PER_CALL = 10  # of the compiled function; a signal waits for the end of a call
METRICS = ("loss/total", *(f"loss/{term}" for term in model.LOSS_TERMS), "accuracy")


def learning_rates(first, last, *, learning_rate, lr_decay, lr_update):
    """Rates of steps first .. last - 1, float32 [last - first]: learning_rate * lr_decay^floor(completed steps / lr_update)."""
    with np.errstate(over="ignore"):
        rates = np.float32([learning_rate * np.float64(lr_decay) ** (step // lr_update) for step in range(first, last)])
    if not np.isfinite(rates).all():
        step = first + int(np.argmin(np.isfinite(rates)))
        raise UserError(
            f"step {step}: --lr_decay={lr_decay:g} takes the learning rate beyond a float32; give an lr_decay of 1 or less"
        )
    return rates


def call_bounds(step, n_step, *intervals):
    """Yields (first, last) for calls from `step` to `n_step`: of at most STEPS_PER_CALL, each multiple of an interval a bound."""
    while step < n_step:
        last = min([n_step, step + STEPS_PER_CALL] + [(step // interval + 1) * interval for interval in intervals])
        yield step, last
        step = last


def check_finite(values, first, *, embed_norm, learning_rate):
    """Raises a UserError if a loss is not finite. values: float32 [K, 7], the METRICS of the steps from `first` on."""
    bad = ~np.isfinite(values).all(axis=1)
    if not bad.any():
        return
    step = first + int(np.argmax(bad))
    term = next((name for name, value in zip(METRICS[1:], values[np.argmax(bad), 1:]) if not np.isfinite(value)), METRICS[0])
    cause = "features are very large: use --embed_norm=auto" if embed_norm == "no_norm" else "the rate is too high"
    raise UserError(
        f"step {step} (of the steps {first} to {first + len(values) - 1}): {term} is not finite; the likely cause is that {cause}, "
        f"so try a --learning_rate below {learning_rate:g} with a new --checkpoint_dir; the last checkpoint is intact"
    )


class TrainStep:
    """Trains a model; a call trains several steps.

    Args:
        net: model.CleanNet. velocity: list of tf.Variable, like its trainable variables.
        references: float32 [C, R, D], raw. strategy: tf.distribute strategy that both were made under.
        loss: model.LossSettings. momentum: float. seed: int, of dropout and of the classes that are compared with.
        dropout_rate: float, of the reference encoder. query_dropout_rate: float, of the query encoder's input.
    """

    def __init__(
        self, net, velocity, references, *, strategy, loss, momentum=0.9, dropout_rate=0.0, query_dropout_rate=0.0, seed=1
    ):
        self._net, self._velocity, self._strategy, self._loss = net, velocity, strategy, loss
        self.embed_norm = net.embed_norm
        self._momentum, self._seed = momentum, seed
        self._dropout_rate, self._query_dropout_rate = dropout_rate, query_dropout_rate
        self._weights = [w.value for w in net.trainable_variables]
        self._usable = np.flatnonzero(arrays.classes_with_references(references)).astype(np.int32)
        self._v_s = net.normalize(references)  # [C, R, D]
        self._compiled = tf.function(self._train, reduce_retracing=True)

    def __call__(self, features, class_ids, labels, verified, *, rates, first_step):
        """Trains K steps.

        Args:
            features: float32 [K, B, D]. class_ids: int32 [K, B]. labels: float32 [K, B]. verified: float32 [B].
            rates: float32 [K]. first_step: int, number of the first step.

        Returns:
            float32 [K, 7], the METRICS of each step; accuracy is the share of right decisions on verified rows at the loss's margin.
        """
        return self._compiled(features, class_ids, labels, verified, rates, np.int32(first_step)).numpy()

    def _train(self, features, class_ids, labels, verified, rates, first_step):
        results = tf.TensorArray(tf.float32, tf.shape(rates)[0], element_shape=[len(METRICS)])
        for k in tf.range(tf.shape(rates)[0]):
            gradients, metrics = self._strategy.run(
                self._replica_step, (features[k], class_ids[k], labels[k], verified, first_step + k)
            )
            results = results.write(k, self._strategy.reduce("SUM", metrics, axis=None))
            for w, v, gradient in zip(self._weights, self._velocity, gradients):
                gradient = self._strategy.reduce("SUM", gradient, axis=None)
                self._strategy.extended.update(w, self._apply_momentum, (v, gradient, rates[k]))
        return results.stack()  # [K, 7]

    def _apply_momentum(self, w, v, gradient, rate):
        """The release's rule: the rate is not part of v, so after a decay it differs from Keras's SGD."""
        v.assign(self._momentum * v + gradient)
        w.assign_sub(rate * v)

    def _replica_step(self, features, class_ids, labels, verified, step):
        """One replica's part of a step: gradients and METRICS of its rows, to be summed over replicas."""
        replicas, all_class_ids = self._strategy.num_replicas_in_sync, class_ids
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group

        def share(x):
            """Every n-th row, so that each replica has its share of verified and of unverified rows."""
            return tf.reshape(x, [-1, replicas, *x.shape[1:]])[:, replica]

        query_mask = 1.0
        if self._query_dropout_rate:
            query_mask = share(model.query_dropout_mask(  # [B, D]
                tf.shape(features)[0], self._net.img_dim, seed=self._seed, step=step, rate=self._query_dropout_rate
            ))
        features, class_ids, labels, verified = map(share, (features, class_ids, labels, verified))
        with tf.GradientTape() as tape:
            classes, class_index = self._classes_to_encode(class_ids, all_class_ids, step)  # [C], [B]
            s, terms = model.loss_terms(
                self._net, self._net.normalize(features), self._embed(classes, step), class_index,
                labels=labels, verified=verified, settings=self._loss, query_mask=query_mask, replicas=replicas,
            )
            loss = tf.add_n(list(terms.values()))
        right = verified * tf.cast((s >= model.MARGIN) == (labels == 1), tf.float32)  # [B]
        accuracy = tf.math.divide_no_nan(tf.reduce_sum(right), tf.reduce_sum(verified) * replicas)  # without verified rows 0
        return tape.gradient(loss, self._weights), tf.stack([loss, *(terms[name] for name in model.LOSS_TERMS), accuracy])

    def _classes_to_encode(self, class_ids, all_class_ids, step):
        """The classes that a replica encodes, each once, int32 [C], and the index among them of each row's class, int32 [B]."""
        wanted = class_ids
        if self._loss.class_contrast:
            others, most = tf.constant(self._usable), self._loss.contrast_classes
            if len(self._usable) > most:
                key = tf.stack([tf.constant(self._seed, tf.int32), step])
                others = tf.random.experimental.stateless_shuffle(others, key)[:most]
            wanted = tf.concat([class_ids, all_class_ids, others], axis=0)
        classes, index = tf.unique(wanted)
        return classes, index[: tf.shape(class_ids)[0]]

    def _embed(self, classes, step):
        """phi_s of classes as training sees them, with dropout: int32 [C] -> float32 [C, E] of length 1."""
        mask = None
        if self._dropout_rate:
            mask = model.dropout_masks(classes, seed=self._seed, step=step, rate=self._dropout_rate, num_ref=self._net.num_ref)
        return model.unit_length(self._net.ref_set_encoder(tf.gather(self._v_s, classes), mask))
