"""Scores rows with a trained model: how well each image fits the class it was given, and which class it fits best."""
import numpy as np
import tensorflow as tf
from tqdm import tqdm

import model
from util.lib import arrays, run_folder
from util.lib.score_table import Scores

BATCH_SIZE = 512  # rows scored in one go where nobody says otherwise: a model does few at a time at half the speed
CLASSES_AT_ONCE = 64  # classes embedded in one go, which bounds the memory
MEAN_OVER = 1000  # rows of a class that its mean is taken over


def restored_scorer(folder, step, run, references, **options):
    """The Scorer of a step of a run, and the state of that checkpoint. run: of run_folder.load_run. options: of Scorer."""
    shape = run["shape"]
    net = model.CleanNet(shape["num_ref"], shape["img_dim"], shape["embed_norm"])
    state = run_folder.restore(folder, step, net)
    kept = run_folder.load_class_embeddings(folder, step, run, model.E)
    return Scorer(net, references, temperature=run["settings"]["contrast_temperature"], class_embeddings=kept, **options), state


class Scorer:
    """A model together with the embeddings of its classes, which are computed once; again by refresh() after training.

    Args:
        net: model.CleanNet. references: float32 [C, R, D], raw; a class whose references are all zero has none, and its
            rows score NaN. batch_size: rows in one go. compare_classes: also find margin, probability and nearest class.
            temperature: of the probability. class_embeddings: float32 [C, E] of length 1; None: phi_s, the paper's.
            strategy: a tf.distribute strategy whose replicas share the rows of a batch; None: this device alone.
    """

    def __init__(
        self, net, references, batch_size=BATCH_SIZE, compare_classes=False, temperature=0.1, class_embeddings=None, strategy=None
    ):
        self._strategy = strategy or tf.distribute.get_strategy()
        self.net, self.batch_size, self.compare_classes, self._references = net, batch_size, compare_classes, references
        self._temperature = temperature
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

    def refresh(self):
        """Embeds the classes by their references, with the weights that the model has now."""
        for i in range(0, len(self._references), CLASSES_AT_ONCE):
            part = slice(i, i + CLASSES_AT_ONCE)
            self.class_embeddings[part].assign(self._embed_classes(self._references[part]))

    def embed_by_rows(self, rows):
        """Embeds each class as the mean of phi_q over its rows, each weighted by its probability under phi_s; length 1.

        An option of this suite: phi_s of a class without verified rows has never been trained to tell right from wrong, and lies
        elsewhere than its images do. Classes without references, or whose rows weigh nothing at all, keep phi_s.

        Args:
            rows: arrays.FeatureArray grouped by class; of a class with more than MEAN_OVER, as many of them, evenly spread.
        """
        self.refresh()
        sums = tf.zeros_like(self.class_embeddings)  # [C, E]
        chosen = np.concatenate([
            np.linspace(first, end - 1, min(end - first, MEAN_OVER)).astype(np.int64) for first, end in zip(rows.first, rows.first[1:])
        ])
        for i in tqdm(range(0, len(chosen), BATCH_SIZE), desc="embedding classes", unit="batch", leave=False, delay=1, disable=None):
            part = chosen[i : i + BATCH_SIZE]
            sums += self._sum_by_class(rows.features[part], rows.class_ids[part])
        size = tf.reduce_max(tf.abs(sums), axis=-1, keepdims=True)  # [C, 1]; tiny where no row is probable
        means = model.unit_length(tf.math.divide_no_nan(sums, size))
        self.class_embeddings.assign(tf.where(size > 0, means, self.class_embeddings))

    def _cosines(self, phi_q):
        """Cosine to every class, -inf to one without references: float32 [B, E] -> [B, C]."""
        return tf.where(self._known, tf.matmul(phi_q, self.class_embeddings, transpose_b=True), -np.inf)

    def _weighted_sums(self, features, class_ids):
        """Sum of phi_q over the rows of each class, weighted by their probabilities: float32 [B, D], int32 [B] -> [C, E]."""
        phi_q = self.net.embed_queries(features)  # [B, E]
        probabilities = tf.nn.softmax(self._cosines(phi_q) / self._temperature)  # [B, C]
        weights = tf.one_hot(class_ids, tf.shape(probabilities)[1]) * probabilities  # [B, C]
        return tf.matmul(weights, phi_q, transpose_a=True)  # [C, E]; a segment sum would not repeat itself on a GPU

    def _score(self, features, class_ids):
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
        return cosine, cosine - best_other, probability, nearest, tf.where(cosine >= best_other, cosine, best_other)

    def _score_on_replicas(self, features, class_ids):
        """_score with the rows dealt out to the replicas; the last rows are repeated to make the deal even."""
        replicas, rows = self._strategy.num_replicas_in_sync, tf.shape(class_ids)[0]
        even = tf.minimum(tf.range(-(-rows // replicas) * replicas), rows - 1)

        def share():
            mine = even[tf.distribute.get_replica_context().replica_id_in_sync_group :: replicas]
            return self._score(tf.gather(features, mine), tf.gather(class_ids, mine))

        def in_order(part):
            parts = tf.reshape(self._strategy.gather(part, axis=0), [replicas, -1])  # [replicas, rows of each]
            return tf.reshape(tf.transpose(parts), [-1])[:rows]

        return tuple(map(in_order, self._strategy.run(share)))

    def score(self, features, class_ids):
        """features: float32 [N, D]. class_ids: int32 [N]. Returns Scores of NumPy arrays."""
        parts = [
            self._score_batch(np.asarray(features[i : i + self.batch_size]), class_ids[i : i + self.batch_size])
            for i in range(0, max(len(features), 1), self.batch_size)  # one empty batch for no rows
        ]
        return Scores(*(np.concatenate(column) for column in zip(*parts)))

    def embed(self, features):
        """phi_q of length 1. features: float32 [N, D]. Returns float32 [N, E]."""
        parts = range(0, len(features), self.batch_size)
        return np.concatenate([self._embed_batch(np.asarray(features[i : i + self.batch_size])) for i in parts])
