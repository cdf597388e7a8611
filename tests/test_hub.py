"""--keras_hub_preset of extract_features.py, with small presets of random weights. Needs requirements-hub.txt; left out without it."""
import cv2
import keras
import numpy as np
import pytest
from conftest import run_script

from util.lib import networks

keras_hub = pytest.importorskip("keras_hub", reason="keras_hub is not installed: requirements-hub.txt")
SIDE = 28
TRANSFORMER = {"patch_size": 14, "num_layers": 2, "hidden_dim": 8, "num_heads": 2}
ENCODER = {"num_layers": 1, "hidden_dim": 8, "num_heads": 2, "intermediate_dim": 16}


def dual(kind, **options):
    """A small CLIP or SigLIP, of an image and a text encoder."""
    models = keras_hub.models
    vision = getattr(models, f"{kind}VisionEncoder")(patch_size=14, image_shape=(SIDE, SIDE, 3), **ENCODER)
    text = getattr(models, f"{kind}TextEncoder")(vocabulary_size=11, embedding_dim=8, max_sequence_length=5, **ENCODER)
    return getattr(models, f"{kind}Backbone")(vision, text, **options)


def vit():
    sides = {"image_shape": (SIDE, SIDE, 3), "patch_size": (14, 14), "mlp_dim": 16}
    return keras_hub.models.ViTBackbone(**{**TRANSFORMER, **sides})


def dino():
    return keras_hub.models.DINOV2Backbone(
        **TRANSFORMER, intermediate_dim=16, image_shape=(SIDE, SIDE, 3), position_embedding_shape=(SIDE, SIDE)
    )


def resnet():
    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64], input_conv_kernel_sizes=[3], stackwise_num_filters=[64], stackwise_num_blocks=[1],
        stackwise_num_strides=[1], block_type="basic_block", image_shape=(SIDE, SIDE, 3),
    )


BACKBONES = {  # name: (makes it, its feature of pixels in Keras's own words)
    "ViT": (vit, lambda backbone, x: backbone(x)[:, 0]),
    "DINOV2": (dino, lambda backbone, x: backbone({"images": x})[:, 0]),
    "CLIP": (lambda: dual("CLIP", projection_dim=6), lambda backbone, x: backbone.get_vision_embeddings(x)),
    "SigLIP": (lambda: dual("SigLIP"), lambda backbone, x: backbone.get_vision_embeddings(x)),
    "ResNet": (resnet, lambda backbone, x: keras.ops.mean(backbone(x), axis=(1, 2))),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Six images of other sizes than the network's, by key."""
    folder, rng, found = tmp_path_factory.mktemp("hub"), np.random.default_rng(0), {}
    (folder / "x").mkdir()
    for i in range(6):
        found[f"x/{i}.png"] = rng.integers(0, 255, (31 + 5 * i, 40, 3), np.uint8)
        cv2.imwrite(str(folder / f"x/{i}.png"), found[f"x/{i}.png"][:, :, ::-1])
    return folder, found


@pytest.mark.parametrize("name", BACKBONES)
def test_features_are_the_backbones_own(name, images, tmp_path):
    """For its own preprocessing, saved with it; one of them in batches of 7 too."""
    make, feature = BACKBONES[name]
    folder, pixels = images
    keras.utils.set_random_seed(1)
    backbone = make()
    converter = getattr(keras_hub.layers, f"{name}ImageConverter")(image_size=(SIDE, SIDE), scale=1 / 127.5, offset=-1.0)
    for saved in (backbone, converter):
        saved.save_to_preset(str(tmp_path / "preset"))
    expected = np.concatenate([feature(backbone, converter(image[None].astype(np.float32))).numpy() for image in pixels.values()])
    for size in (4, 7) if name == "ViT" else (4,):
        run_script(
            "util/extract_features.py", f"--keras_hub_preset={tmp_path}/preset", f"--image_dir={folder}",
            f"--output_file={tmp_path}/{size}.tsv", f"--batch_size={size}",
        )
        rows = [line.split("\t") for line in (tmp_path / f"{size}.tsv").read_text().splitlines()]
        assert [row[0] for row in rows] == list(pixels)
        np.testing.assert_allclose(np.float32([row[-1].split(",") for row in rows]), expected, atol=1e-5)


def test_a_folder_that_is_no_preset(images, tmp_path):
    preset = [f"--keras_hub_preset={images[0]}", f"--image_dir={images[0]}"]
    done = run_script("util/extract_features.py", *preset, f"--output_file={tmp_path}/x.tsv", check=False)
    assert done.returncode == 1
    assert "cannot be used: " in done.stderr
    assert len([line for line in done.stderr.splitlines() if "error: " in line]) == 1
    assert "Traceback" not in done.stderr


def test_a_preset_that_has_no_images(tmp_path):
    """A text model's."""
    keras_hub.models.BertBackbone(vocabulary_size=11, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16).save_to_preset(
        str(tmp_path / "preset")
    )
    with pytest.raises(Exception, match="cannot be used: "):
        networks.load_hub_preset(str(tmp_path / "preset"))
