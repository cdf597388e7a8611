"""model.py and util/lib/train_step.py against the recorded numbers of the 2018 model and against NumPy."""
import pathlib

import numpy as np
import pytest
import tensorflow as tf

import model
from util.lib import arrays, train_step

pytestmark = pytest.mark.check

GOLDEN = np.load(pathlib.Path(__file__).with_name("cleannet_reference.npz"), allow_pickle=False)
NORMS = {"log": "log", "l2_norm": "l2norm", "no_norm": "no_norm"}  # our name: the recorded one
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
LAYERS = {
    "query_encoder": ("encode_1", "encode_2", "decode_1", "decode_2"),
    "ref_set_encoder": ("hidden_1", "hidden_2", "attention", "embedding"),
}


def golden_weights(net):
    """{recorded name: variable of the model} for the 17 trainable arrays."""
    found = {}
    for tower, layers in LAYERS.items():
        for i, name in enumerate(layers):
            layer = getattr(getattr(net, tower), name)
            recorded = f"{tower}/fully_connected{f'_{i}' if i else ''}"
            found |= {f"{recorded}/weights": layer.kernel, f"{recorded}/biases": layer.bias}
    return found | {"ref_set_encoder/context": net.ref_set_encoder.context}


def golden_net(embed_norm):
    net = model.CleanNet(num_ref=5, img_dim=23, embed_norm=embed_norm)
    for name, variable in golden_weights(net).items():
        variable.assign(GOLDEN[f"weight/{name}"].astype(np.float32))
    return net


def forward(net):
    """Everything the recorded forward pass has, with one reference set for each row as recorded."""
    v_q = model.normalize_features(GOLDEN["query"], net.embed_norm)
    v_s = model.normalize_features(GOLDEN["reference"], net.embed_norm)
    phi_s = net.ref_set_encoder(v_s)
    phi_q, v_qr = net.query_encoder(v_q)
    s = tf.reduce_sum(model.unit_length(phi_q) * model.unit_length(phi_s), axis=-1)
    return {"v_q": v_q, "phi_s": phi_s, "phi_q": phi_q, "v_qr": v_qr, "cos_sim": s}


def losses(net):
    """Every recorded loss term: those of each row before their weights, and the objective as training has it."""
    out, settings = forward(net), model.LossSettings()
    _, terms = model.loss_terms(
        net, out["v_q"], model.unit_length(out["phi_s"]), tf.range(13), labels=GOLDEN["vlabel"], verified=GOLDEN["vflag"],
        settings=settings,
    )
    return {
        "reconstruction": model.reconstruction_loss(out["v_q"], out["v_qr"]),
        "supervised": model.cosine_loss(out["cos_sim"], GOLDEN["vlabel"], settings.neg_weight),
        "unsupervised": model.unsupervised_loss(out["cos_sim"], settings.neg_weight),
        "objective_loss": tf.add_n([term for name, term in terms.items() if name != "weight_penalty"]),
        "regularization_loss": terms["weight_penalty"],
        "loss": tf.add_n(list(terms.values())),
    }


def make_step(net, **settings):
    """A TrainStep of a model on the recorded references."""
    velocity = [tf.Variable(tf.zeros_like(w.value)) for w in net.trainable_variables]
    return train_step.TrainStep(net, velocity, GOLDEN["reference"], strategy=tf.distribute.get_strategy(), **settings)


def test_parameters_are_pinned():
    net = model.CleanNet(num_ref=32, img_dim=2048)
    assert len(net.trainable_variables) == 17
    assert len(net.weight_matrices) == 8
    query = 2048 * 256 + 256 + 256 * 128 + 128 + 128 * 256 + 256 + 256 * 2048 + 2048
    reference = 2048 * 512 + 512 + 512 * 256 + 256 + 256 * 256 + 256 + 256 + 256 * 128 + 128
    assert net.count_params() == query + reference


@pytest.mark.parametrize("embed_norm", NORMS)
def test_forward_pass_equals_the_recorded_one(embed_norm):
    for name, value in forward(golden_net(embed_norm)).items():
        np.testing.assert_allclose(value, GOLDEN[f"{NORMS[embed_norm]}/{name}"], err_msg=name, **CLOSE)


@pytest.mark.parametrize("embed_norm", NORMS)
def test_loss_terms_equal_the_recorded_ones(embed_norm):
    for name, value in losses(golden_net(embed_norm)).items():
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if name == "reconstruction" else CLOSE
        np.testing.assert_allclose(value, GOLDEN[f"{NORMS[embed_norm]}/{name}"], err_msg=name, **tolerance)
    if embed_norm == "log":
        s = forward(golden_net(embed_norm))["cos_sim"].numpy()
        assert np.mean((s >= 0.1) == (GOLDEN["vlabel"] == 1)) == pytest.approx(GOLDEN["log/accuracy_at_0_1"])


@pytest.mark.parametrize("embed_norm", NORMS)
def test_gradient_norms_equal_the_recorded_ones(embed_norm):
    net = golden_net(embed_norm)
    with tf.GradientTape() as tape:
        loss = losses(net)["loss"]
    weights = golden_weights(net)
    for name, gradient in zip(weights, tape.gradient(loss, [w.value for w in weights.values()])):
        np.testing.assert_allclose(tf.norm(gradient), GOLDEN[f"{NORMS[embed_norm]}/grad_norm/{name}"], err_msg=name, **CLOSE)


@pytest.mark.parametrize("step_size", [1, 7])
def test_training_step_follows_the_recorded_trajectory(step_size):
    """20 steps of the training's own step on the recorded batch, each row its own class, with a decay after the tenth."""
    net = golden_net("log")
    step = make_step(net, loss=model.LossSettings())
    rates = train_step.learning_rates(0, 20, learning_rate=0.01, lr_decay=0.1, lr_update=10)
    trajectory = []
    for first in range(0, 20, step_size):
        k = len(rates[first : first + step_size])
        batch = [np.repeat(x[None], k, axis=0) for x in (GOLDEN["query"], np.arange(13, dtype=np.int32), GOLDEN["vlabel"])]
        metrics = step(*batch, GOLDEN["vflag"], rates=rates[first : first + k], first_step=first)
        trajectory += metrics[:, 0].tolist()
    tolerance = {"rtol": 1e-4, "atol": 1e-6}
    np.testing.assert_allclose(trajectory, GOLDEN["log/loss_trajectory_20_steps"], **tolerance)
    for name, variable in golden_weights(net).items():
        np.testing.assert_allclose(tf.norm(variable.value), GOLDEN[f"log/weight_norm_after_20_steps/{name}"], err_msg=name, **tolerance)
    np.testing.assert_allclose(forward(net)["cos_sim"], GOLDEN["log/cos_sim_after_20_steps"], **tolerance)


def test_signed_log_is_the_equation_of_the_docs():
    x = np.random.default_rng(0).normal(size=(3, 5, 7)).astype("f")
    x[1, 2] = 0
    u = 7**0.5 * x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-30)
    found = model.normalize_features(x, "signed_log").numpy()
    np.testing.assert_allclose(found, np.sign(x) * np.log(1 + np.abs(u)), rtol=1e-5, atol=1e-7)
    assert not found[1, 2].any()
    assert (found < 0).sum() > 20


def test_scaled_log_is_the_equation_of_the_docs():
    """Its scale is that of the references that there are: a class without any has zeros."""
    references = np.random.default_rng(0).normal(size=(3, 5, 7)).astype("f")
    references[1] = 0
    scale = arrays.scale_for(references)
    assert scale * np.linalg.norm(references[[0, 2]], axis=-1).mean() == pytest.approx(6, rel=1e-2)
    found = model.normalize_features(references, "scaled_log", scale).numpy()
    np.testing.assert_allclose(found, np.sign(references) * np.log(1 + scale * np.abs(references)), rtol=1e-5, atol=1e-7)
    assert (found < 0).sum() > 20


def test_forward_pass_equals_numpy():
    """An independent forward pass in float64, sizes 3 classes, 5 references, 7 numbers."""
    net = model.CleanNet(num_ref=5, img_dim=7, embed_norm="l2_norm", seed=3)
    rng = np.random.default_rng(0)
    references, features = rng.random((3, 5, 7)).astype("f"), rng.random((11, 7)).astype("f")

    def dense(layer, x):
        return np.tanh(x @ layer.kernel.numpy().astype("f8") + layer.bias.numpy())

    def unit(x):
        return x / np.sqrt(np.maximum((x**2).sum(-1, keepdims=True), 1e-12))

    tower = net.ref_set_encoder
    h = dense(tower.hidden_2, dense(tower.hidden_1, unit(references.astype("f8"))))
    logits = dense(tower.attention, h) @ tower.context.numpy()
    alpha = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    phi_s = unit(dense(tower.embedding, (alpha[:, :, None] * h).sum(axis=1)))
    phi_q = unit(dense(net.query_encoder.encode_2, dense(net.query_encoder.encode_1, unit(features.astype("f8")))))
    np.testing.assert_allclose(net.embed_classes(references), phi_s, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(net.embed_queries(features), phi_q, rtol=1e-5, atol=1e-6)


def test_losses_by_hand():
    s, label = tf.constant([0.5, 0.5, 0.05, -0.3]), tf.constant([1.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(model.cosine_loss(s, label, 5.0), [0.5, 2.0, 0.0, 1.3], atol=1e-6)
    np.testing.assert_allclose(model.unsupervised_loss(s, 5.0), [0.5, 0.5, 0.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(model.reconstruction_loss(tf.constant([[1.0, 2.0]]), tf.constant([[0.0, 4.0]])), [5.0])


@pytest.mark.parametrize(("contrast", "query_dropout"), [(0.0, 0.0), (1.0, 0.3)])
def test_one_step_changes_every_weight(contrast, query_dropout):
    net = model.CleanNet(num_ref=5, img_dim=23, seed=2)
    before = [w.numpy() for w in net.trainable_variables]
    loss = model.LossSettings(class_contrast=contrast, contrast_classes=4)
    step = make_step(net, loss=loss, dropout_rate=0.2, query_dropout_rate=query_dropout)
    ids = np.arange(13, dtype=np.int32)[None]
    step(GOLDEN["query"][None], ids, GOLDEN["vlabel"][None], GOLDEN["vflag"], rates=np.float32([0.01]), first_step=0)
    for old, new in zip(before, net.trainable_variables):
        assert np.isfinite(new.numpy()).all()
        assert not np.array_equal(old, new.numpy()), new.path


def test_dropout_masks_are_keyed_by_seed_step_and_class():
    def masks(ids, **changes):
        return model.dropout_masks(tf.constant(ids), **{"seed": 1, "step": tf.constant(5), "rate": 0.2, "num_ref": 7, **changes}).numpy()

    both = masks([3, 8])
    np.testing.assert_array_equal(both[1], masks([8])[0])
    assert not np.array_equal(both[0], both[1])
    assert not np.array_equal(both[0], masks([3], seed=2)[0])
    assert not np.array_equal(both[0], masks([3], step=tf.constant(6))[0])
    assert set(np.unique(both)) == {np.float32(0), np.float32(1.25)}
    assert np.mean(masks(range(50)) == 0) == pytest.approx(0.2, abs=0.003)


def test_query_dropout_masks_are_keyed_by_seed_and_step():
    def mask(**changes):
        return model.query_dropout_mask(40, 500, **{"seed": 1, "step": tf.constant(5), "rate": 0.2, **changes}).numpy()

    np.testing.assert_array_equal(mask(), mask())
    assert not np.array_equal(mask(), mask(seed=2))
    assert not np.array_equal(mask(), mask(step=tf.constant(6)))
    assert not np.array_equal(mask()[0], mask()[1])
    assert set(np.unique(mask())) == {np.float32(0), np.float32(1.25)}
    assert np.mean(mask() == 0) == pytest.approx(0.2, abs=0.01)


def test_contrast_by_hand():
    similarities = tf.constant([[0.2, 0.1], [0.0, 0.3]])
    loss = model.contrast_loss(similarities, tf.constant([0, 0]), tf.constant([1.0, 0.5]), 0.1)
    np.testing.assert_allclose(loss, [np.log1p(np.exp(-1)), 0.5 * np.log1p(np.exp(3))], rtol=1e-5)
    smooth = model.contrast_loss(similarities, tf.constant([0, 0]), tf.constant([1.0, 1.0]), 0.1, smoothing=0.2)
    own, other = np.log1p(np.exp([-1, 3])), np.log1p(np.exp([1, -3]))  # cross-entropy with the one class and with the other
    np.testing.assert_allclose(smooth, 0.9 * own + 0.1 * other, rtol=1e-5)
