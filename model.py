"""The CleanNet model: the two towers, the score and the loss (Lee et al., CVPR 2018, section 3).

    python -c "import model; net = model.CleanNet(num_ref=32, img_dim=2048); print(net.count_params())"

Legend of shapes, used in every comment below:
    B  rows per batch             C  classes             R  references per class
    D  numbers per feature        E  numbers per embedding, 128

    v_q   [B, D]  feature of an image (the query), normalised      v_S  [C, R, D]  references of each class, normalised
    phi_q [B, E]  embedding of the image                           phi_s [C, E]    embedding of the class
    v_qr  [B, D]  the query as the autoencoder rebuilds it
    s     [B]     cos(phi_q, phi_s of the given class)
A verification label l is 1 for "label correct" and 0 for "mislabeled". docs/method.md has the equations in one place.
"""
from typing import NamedTuple

import keras
import tensorflow as tf

E = 128  # numbers per embedding
MARGIN = 0.1  # cosine from which a label counts as correct inside the loss
BETA = 0.1  # weight of the reconstruction error L_r
GAMMA = 0.1  # weight of the unsupervised term L_unsup
EPSILON = 1e-12  # lower bound of a squared length that a vector is divided by


def normalize_features(features, embed_norm, scale=None):
    """Normalises raw features x, of queries and references alike, by the equations of docs/method.md, "Model".

    Args:
        features: float32 [..., D].
        embed_norm: one of arrays.EMBED_NORMS. `log` needs every feature above -1; the others take any.
        scale: float, which scaled_log multiplies features by; None for the others.

    Returns:
        float32 [..., D].
    """
    if embed_norm == "log":
        return tf.math.log1p(features)
    if embed_norm == "scaled_log":
        return _signed_log(features * scale)
    if embed_norm == "no_norm":
        return tf.convert_to_tensor(features)
    largest = tf.reduce_max(tf.abs(features), axis=-1, keepdims=True)  # first to 1: a square must not overflow or vanish
    unit = tf.math.l2_normalize(tf.math.divide_no_nan(features, largest), axis=-1, epsilon=EPSILON)
    if embed_norm == "l2_norm":
        return unit
    return _signed_log(unit * features.shape[-1] ** 0.5)  # of numbers of about 1, whatever D is


def _signed_log(u):
    """sign(u) log(1 + |u|)."""
    return tf.sign(u) * tf.math.log1p(tf.abs(u))


class QueryEncoder(keras.Model):
    """Autoencoder of image features; its bottleneck of 128 numbers is phi_q (paper, section 3.2)."""

    def __init__(self, img_dim, seed=0):
        super().__init__(name="query_encoder")
        self.encode_1 = _dense("encode_1", 256, seed)
        self.encode_2 = _dense("encode_2", E, seed + 1)
        self.decode_1 = _dense("decode_1", 256, seed + 2)
        self.decode_2 = _dense("decode_2", img_dim, seed + 3)
        self.img_dim = img_dim

    def build(self, input_shape=None):
        for layer, size in ((self.encode_1, self.img_dim), (self.encode_2, 256), (self.decode_1, E), (self.decode_2, 256)):
            layer.build((None, size))
        self.built = True

    def encode(self, v_q):
        """v_q float32 [B, D] -> phi_q float32 [B, E]."""
        return self.encode_2(self.encode_1(v_q))  # [B, D] -> [B, 256] -> [B, E]

    def call(self, v_q):
        """v_q float32 [B, D] -> (phi_q [B, E], v_qr [B, D])."""
        phi_q = self.encode(v_q)  # [B, E]
        return phi_q, self.decode_2(self.decode_1(phi_q))  # [B, E], [B, E] -> [B, 256] -> [B, D]


class ReferenceSetEncoder(keras.Model):
    """Embeds each class from its references: encodes each one, then sums them by attention (paper, section 3.1)."""

    HIDDEN = 512  # units that dropout acts on

    def __init__(self, img_dim, seed=0):
        super().__init__(name="ref_set_encoder")
        self.hidden_1 = _dense("hidden_1", self.HIDDEN, seed)
        self.hidden_2 = _dense("hidden_2", 256, seed + 1)
        self.attention = _dense("attention", 256, seed + 2)
        self.embedding = _dense("embedding", E, seed + 3)
        self.img_dim, self.seed = img_dim, seed

    def build(self, input_shape=None):
        for layer, size in (
            (self.hidden_1, self.img_dim), (self.hidden_2, self.HIDDEN), (self.attention, 256), (self.embedding, 256)
        ):
            layer.build((None, size))
        # One vector for all classes. Keras takes Glorot's limits from a matrix only.
        limits = keras.initializers.GlorotUniform(seed=self.seed + 4)
        self.context = self.add_weight(shape=(256,), initializer=lambda *_, **__: limits((256, 1))[:, 0], name="context")
        self.built = True

    def call(self, v_s, dropout_mask=None):
        """Embeds classes.

        Args:
            v_s: float32 [C, R, D], normalised references.
            dropout_mask: float32 [C, R, 512] of 0 and 1 / (1 - rate), or None: no dropout.

        Returns:
            phi_s, float32 [C, E].
        """
        hidden = self.hidden_1(v_s)  # [C, R, D] -> [C, R, 512]
        if dropout_mask is not None:
            hidden = hidden * dropout_mask  # [C, R, 512]
        h = self.hidden_2(hidden)  # [C, R, 256]
        u = self.attention(h)  # [C, R, 256]
        alpha = tf.nn.softmax(tf.linalg.matvec(u, self.context), axis=-1)  # [C, R]
        pooled = tf.einsum("cr,crh->ch", alpha, h)  # [C, 256]
        return self.embedding(pooled)  # [C, E]


class CleanNet(keras.Model):
    """Both towers. `num_ref`, `img_dim`, `embed_norm` and `embed_scale` belong to the weights, so a run keeps them together."""

    def __init__(self, num_ref, img_dim, embed_norm="log", seed=0, embed_scale=None):
        super().__init__(name="cleannet")
        self.num_ref, self.img_dim, self.embed_norm, self.embed_scale = num_ref, img_dim, embed_norm, embed_scale
        # Distinct seeds: Keras gives two layers with the same seed the same numbers.
        self.query_encoder = QueryEncoder(img_dim, seed=100 * seed)
        self.ref_set_encoder = ReferenceSetEncoder(img_dim, seed=100 * seed + 50)
        self.build()

    def build(self, input_shape=None):
        self.query_encoder.build()
        self.ref_set_encoder.build()
        self.built = True

    @property
    def weight_matrices(self):
        """The eight matrices that weight decay acts on; the biases and the context vector are left out."""
        return [w for w in self.trainable_variables if len(w.shape) == 2]

    def normalize(self, features):
        """normalize_features of raw features float32 [..., D], as this model sees them."""
        return normalize_features(features, self.embed_norm, self.embed_scale)

    def embed_classes(self, references):
        """Raw references float32 [C, R, D] -> phi_s of length 1, float32 [C, E]; without dropout."""
        return unit_length(self.ref_set_encoder(self.normalize(references)))

    def embed_queries(self, features):
        """Raw features float32 [B, D] -> phi_q of length 1, float32 [B, E]."""
        return unit_length(self.query_encoder.encode(self.normalize(features)))


def _dense(name, units, seed):
    limits = keras.initializers.GlorotUniform(seed=seed)
    return keras.layers.Dense(units, activation="tanh", kernel_initializer=limits, name=name)


def unit_length(vectors):
    """Divides float32 [..., E] by its length along the last axis."""
    return tf.math.l2_normalize(vectors, axis=-1, epsilon=EPSILON)


def dropout_masks(class_ids, *, seed, step, rate, num_ref):
    """Dropout of the reference encoder, keyed by (seed, step, class): the same on every replica and after a resume.

    Args:
        class_ids: int32 [C]. seed: int. step: int32 scalar tensor. rate: share of units dropped, 0 <= rate < 1.

    Returns:
        float32 [C, R, 512] of 0 and 1 / (1 - rate).
    """
    units = num_ref * ReferenceSetEncoder.HIDDEN
    bits = tf.vectorized_map(lambda class_id: _random_bits(units, seed, step, class_id), class_ids)
    return _mask(bits, [-1, num_ref, ReferenceSetEncoder.HIDDEN], rate)


def query_dropout_mask(num_rows, img_dim, *, seed, step, rate):
    """Dropout of the features that the query encoder sees, an option of this suite; keyed by (seed, step).

    Args:
        num_rows, img_dim: int, the shape of the mask. seed, step, rate: as in dropout_masks.

    Returns:
        float32 [B, D] of 0 and 1 / (1 - rate).
    """
    bits = _random_bits(num_rows * (img_dim + img_dim % 2), seed, step, tf.int32.max)  # no class has this id
    return _mask(bits, [num_rows, -1], rate)[:, :img_dim]


def _random_bits(units, seed, step, stream):
    """16 random bits per unit, for an even number of units: uint32 [units / 2]. 32 bits per unit would take twice as long."""
    key = tf.random.experimental.stateless_fold_in(tf.stack([tf.constant(seed, tf.int32), step]), stream)
    return tf.random.stateless_uniform([units // 2], key, minval=None, maxval=None, dtype=tf.uint32)


def _mask(bits, shape, rate):
    """Turns random bits into a dropout mask of the given shape: float32 of 0 and 1 / (1 - rate)."""
    kept = tf.reshape(tf.bitcast(bits, tf.uint16), shape) >= tf.constant(round(rate * (1 << 16)), tf.uint16)
    return tf.cast(kept, tf.float32) / (1.0 - rate)


def reconstruction_loss(v_q, v_qr):
    """L_r = |v_q - v_qr|^2, summed over D. float32 [B, D] twice -> [B]."""
    return tf.reduce_sum(tf.square(v_q - v_qr), axis=-1)


def cosine_loss(s, label, neg_weight):
    """L_cos = l (1 - s) + neg_weight (1 - l) max(0, s - 0.1); paper, equation 3. s, label: float32 [B] -> [B]."""
    return label * (1.0 - s) + neg_weight * (1.0 - label) * tf.nn.relu(s - MARGIN)


def unsupervised_loss(s, neg_weight):
    """L_cos with the pseudo label 1[s >= 0.1]; paper, equation 6. float32 [B] -> [B]."""
    pseudo_label = tf.stop_gradient(tf.cast(s >= MARGIN, tf.float32))
    return cosine_loss(s, pseudo_label, neg_weight)


def contrast_loss(similarities, class_index, weight, temperature, smoothing=0.0):
    """Class contrast, an option of this suite: pulls rows to their given class and pushes them from all others.

    Args:
        similarities: float32 [B, C], cosine of each row to each class.
        class_index: int32 [B], the column of each row's given class.
        weight: float32 [B], trust in the given class, from 0 to 1; no gradient goes through it.
        temperature: float, divides the cosines.
        smoothing: float, share of the target that is spread evenly over the C classes (label smoothing).

    Returns:
        float32 [B], weight * cross-entropy(softmax(similarities / temperature), class_index).
    """
    log_probability = tf.nn.log_softmax(similarities / temperature)  # [B, C]
    given = tf.gather(log_probability, class_index, batch_dims=1)  # [B]
    spread = tf.reduce_mean(log_probability, axis=-1)  # [B]
    return -tf.stop_gradient(weight) * ((1 - smoothing) * given + smoothing * spread)


def weight_penalty(matrices):
    """Sum of |W|^2 / 2 over the matrices, a float32 scalar."""
    return tf.add_n([tf.nn.l2_loss(w) for w in matrices])


class LossSettings(NamedTuple):
    """What the objective is weighted by; the defaults are the paper's."""

    neg_weight: float = 5.0
    weight_decay: float = 1e-4
    class_contrast: float = 0.0
    contrast_temperature: float = 0.1
    contrast_smoothing: float = 0.0
    contrast_classes: int = 256  # compared with per step


LOSS_TERMS = ("supervised", "unsupervised", "reconstruction", "contrast", "weight_penalty")


def loss_terms(net, v_q, phi_s, class_index, *, labels, verified, settings, query_mask=1.0, replicas=1):
    """The objective, term by term, each with its weight (paper, equation 7; docs/method.md, "Loss").

    Args:
        net: CleanNet. v_q: float32 [B, D]. phi_s: float32 [C, E] of length 1.
        class_index: int32 [B], the row of phi_s that is each row's given class.
        labels: float32 [B], 1 = label correct, 0 = mislabeled; unused for unverified rows.
        verified: float32 [B], f of the paper: 1 for a row of train.npy, 0 for a row of all.npy.
        settings: LossSettings. query_mask: float32 [B, D], query dropout, or 1.
        replicas: over how many replicas the terms will be summed, each with B rows.

    Returns:
        (s, float32 [B], and {name: float32 scalar} for LOSS_TERMS, whose sum is the loss).
    """
    phi_q, v_qr = net.query_encoder(v_q * query_mask)  # [B, E], [B, D]
    phi_q = unit_length(phi_q)  # [B, E]
    s = tf.reduce_sum(phi_q * tf.gather(phi_s, class_index), axis=-1)  # [B]
    rows = {
        "supervised": verified * cosine_loss(s, labels, settings.neg_weight),  # [B]
        "unsupervised": GAMMA * (1 - verified) * unsupervised_loss(s, settings.neg_weight),  # [B]
        "reconstruction": BETA * reconstruction_loss(v_q, v_qr),  # [B]
        "contrast": tf.zeros_like(s),  # [B]
    }
    if settings.class_contrast:
        trust = verified * labels + (1 - verified) * tf.nn.relu(s)  # [B]
        cosines = tf.matmul(phi_q, phi_s, transpose_b=True)  # [B, C]
        rows["contrast"] = settings.class_contrast * contrast_loss(
            cosines, class_index, trust, settings.contrast_temperature, settings.contrast_smoothing
        )  # [B]
    num_rows = tf.cast(tf.shape(v_q)[0] * replicas, tf.float32)
    terms = {name: tf.reduce_sum(term) / num_rows for name, term in rows.items()}
    return s, terms | {"weight_penalty": settings.weight_decay * weight_penalty(net.weight_matrices) / replicas}
