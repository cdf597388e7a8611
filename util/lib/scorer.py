"""The compiled scorer: how well each image fits its given class, and which class it fits best.

Apart from scoring.py because it imports TensorFlow, which takes seconds; what is wrong with flags or files is reported before.
"""
import numpy as np
import tensorflow as tf
from tqdm import tqdm

import model
from util.lib import arrays
from util.lib.score_table import Scores

BATCH_SIZE = 512  # rows per batch by default; small batches take twice as long per row
CLASSES_PER_BATCH = 64  # of classes to embed, which bounds the memory
MEAN_OVER = 1000  # rows per class, at most, that its mean is taken over


class Scorer:
    """A model with the embeddings of its classes, which are computed once, and again by refresh() after training.

    Args:
        net: model.CleanNet. references: float32 [C, R, D], raw; a class whose references are all zero has none, and its
            rows score NaN. batch_size: rows per batch. compare_classes: also find margin, probability and nearest class.
        all_probabilities: with compare_classes: also the probability of every class; on one device.
        temperature: of the probability. class_embeddings: float32 [C, E] of length 1; None: phi_s, the paper's.
        strategy: tf.distribute strategy whose replicas share the rows of a batch; None: one device.
    """

    def __init__(
        self, net, references, *, batch_size=BATCH_SIZE, compare_classes=False, all_probabilities=False, temperature=0.1,
        class_embeddings=None, strategy=None,
    ):
        self._strategy = strategy or tf.distribute.get_strategy()
        self.net, self.batch_size, self.compare_classes, self._references = net, batch_size, compare_classes, references
        self._temperature, self._all_probabilities = temperature, all_probabilities
        self._known = tf.constant(arrays.classes_with_references(references))
        self._embed_classes = tf.function(net.embed_classes, reduce_retracing=True)
        self.class_embeddings = tf.Variable(tf.zeros([len(references), model.E]), trainable=False)  # [C, E]
        if class_embeddings is None:
            self.refresh()
        else:
            self.class_embeddings.assign(class_embeddings)
        spec = [tf.TensorSpec([None, net.img_dim], tf.float32), tf.TensorSpec([None], tf.int32)]
        several = self._strategy.num_replicas_in_sync > 1
        self._score_batch = tf.function(self._score_on_replicas if several else self._score, input_signature=spec)
        self._embed_batch = tf.function(net.embed_queries, input_signature=spec[:1])
        self._sum_by_class = tf.function(self._weighted_sums, input_signature=spec)

    def embed_classes(self, array=None):
        """Embeds the classes by the rows of an array as in embed_by_rows, or (None) by their references.

        Returns:
            What a checkpoint keeps of it: float32 [C, E], or None, since the references are kept anyway.
        """
        if array is None:
            return self.refresh()
        self.embed_by_rows(array)
        return self.class_embeddings.numpy()

    def refresh(self):
        """Embeds the classes by their references, with the current weights of the model."""
        for i in range(0, len(self._references), CLASSES_PER_BATCH):
            part = slice(i, i + CLASSES_PER_BATCH)
            self.class_embeddings[part].assign(self._embed_classes(self._references[part]))

    def embed_by_rows(self, array):
        """Embeds each class as the mean of phi_q over its rows, weighted by their probabilities under phi_s; length 1.

        An option of this suite (docs/method.md, "Means of rows"): phi_s of a class without verified rows was never trained to
        tell right from wrong, and lies apart from its images. Classes without references, or with rows of no weight, keep phi_s.

        Args:
            array: arrays.FeatureArray grouped by class. A class with more than MEAN_OVER rows is represented by MEAN_OVER of
                them, evenly spread.
        """
        self.refresh()
        sums = tf.zeros_like(self.class_embeddings)  # [C, E]
        chosen = np.concatenate([
            np.linspace(first, end - 1, min(end - first, MEAN_OVER)).astype(np.int64)
            for first, end in zip(array.first, array.first[1:])
        ])
        for i in tqdm(range(0, len(chosen), BATCH_SIZE), desc="embedding classes", unit="batch", leave=False, delay=1, disable=None):
            part = chosen[i : i + BATCH_SIZE]
            sums += self._sum_by_class(array.features[part], array.class_ids[part])
        size = tf.reduce_max(tf.abs(sums), axis=-1, keepdims=True)  # [C, 1]; tiny where no row is probable
        means = model.unit_length(tf.math.divide_no_nan(sums, size))
        self.class_embeddings.assign(tf.where(size > 0, means, self.class_embeddings))

    def _cosines(self, phi_q):
        """Cosine to every class, -inf for classes without references: float32 [B, E] -> [B, C]."""
        return tf.where(self._known, tf.matmul(phi_q, self.class_embeddings, transpose_b=True), -np.inf)

    def _weighted_sums(self, features, class_ids):
        """Sum of phi_q over the rows of each class, weighted by their probabilities: float32 [B, D], int32 [B] -> [C, E]."""
        phi_q = self.net.embed_queries(features)  # [B, E]
        probabilities = tf.nn.softmax(self._cosines(phi_q) / self._temperature)  # [B, C]
        weights = tf.one_hot(class_ids, tf.shape(probabilities)[1]) * probabilities  # [B, C]
        return tf.matmul(weights, phi_q, transpose_a=True)  # [C, E]; a segment sum would not repeat itself on a GPU

    def _score(self, features, class_ids):
        """The columns of Scores for float32 [B, D] and int32 [B]; the cosine alone unless classes are compared."""
        phi_q = self.net.embed_queries(features)  # [B, E]
        cosine = tf.reduce_sum(phi_q * tf.gather(self.class_embeddings, class_ids), axis=-1)  # [B]
        known = tf.gather(self._known, class_ids)  # [B]
        cosine = tf.where(known, cosine, np.nan)
        if not self.compare_classes:
            return (cosine,)
        cosines = self._cosines(phi_q)  # [B, C]
        is_given = tf.one_hot(class_ids, tf.shape(cosines)[1], on_value=True, off_value=False)  # [B, C]
        others = tf.where(is_given, -np.inf, cosines)  # [B, C]
        best_other = tf.reduce_max(others, axis=-1)  # [B]
        # The given class keeps the cosine of the plain output, so that both outputs agree to the last bit.
        nearest = tf.where(cosine >= best_other, class_ids, tf.argmax(others, axis=-1, output_type=tf.int32))
        probability = tf.exp(cosine / self._temperature - tf.reduce_logsumexp(cosines / self._temperature, axis=-1))  # [B]
        margin = tf.where(tf.math.is_inf(best_other), np.nan, cosine - best_other)  # [B]; none where there is one class only
        found = cosine, margin, probability, nearest, tf.where(cosine >= best_other, cosine, best_other)
        return (*found, tf.nn.softmax(cosines / self._temperature)) if self._all_probabilities else found

    def _score_on_replicas(self, features, class_ids):
        """_score with the rows split evenly between the replicas; the last row is repeated to fill the last split."""
        replicas, rows = self._strategy.num_replicas_in_sync, tf.shape(class_ids)[0]
        indices = tf.minimum(tf.range(-(-rows // replicas) * replicas), rows - 1)

        def share():
            mine = indices[tf.distribute.get_replica_context().replica_id_in_sync_group :: replicas]
            return self._score(tf.gather(features, mine), tf.gather(class_ids, mine))

        def in_order(part):
            parts = tf.reshape(self._strategy.gather(part, axis=0), [replicas, -1])  # [replicas, rows per replica]
            return tf.reshape(tf.transpose(parts), [-1])[:rows]

        return tuple(map(in_order, self._strategy.run(share)))

    def score(self, features, class_ids):
        """Scores rows. features: float32 [N, D]. class_ids: int32 [N]. Returns score_table.Scores of NumPy arrays."""
        parts = [
            self._score_batch(np.asarray(features[i : i + self.batch_size]), class_ids[i : i + self.batch_size])
            for i in range(0, max(len(features), 1), self.batch_size)  # one empty batch for no rows
        ]
        return Scores(*(np.concatenate(column) for column in zip(*parts)))

    def embed(self, features):
        """Embeds rows: float32 [N, D] -> phi_q of length 1, float32 [N, E]."""
        parts = range(0, len(features), self.batch_size)
        return np.concatenate([self._embed_batch(np.asarray(features[i : i + self.batch_size])) for i in parts])
