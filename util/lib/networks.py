"""Loads networks for images: those of keras.applications and Keras Hub, and .keras files of the user's own."""
import numpy as np

from util.lib import class_list, paths
from util.lib.errors import UserError

WITH_CLASS_TOKEN = ("ViTBackbone", "DeiTBackbone", "DINOV2Backbone", "DINOV3Backbone")  # of Keras Hub; it is the first token


def load_network(*, model="ResNet50", weights="imagenet", keras_model=None, layer=None, crop=224):
    """Loads a network; the arguments are the flags of these names.

    Returns:
        (keras.Model from float32 [B, crop, crop, channels] to features [B, D]; a function that turns RGB pixels, 0 to
        255, into what the model expects; the model's name).
    """
    import keras

    keras.utils.set_random_seed(0)  # of --weights=none: a resumed run has the same network
    if keras_model:
        return _load_own_model(keras_model, layer, crop), lambda pixels: pixels, keras_model
    module, source = application_module(model), None if weights == "none" else weights
    try:
        network = getattr(keras.applications, model)(
            include_top=False, weights=source, pooling="avg", input_shape=(crop, crop, 3)
        )
    except Exception as error:  # a download or a file, and Keras raises whatever they raise
        raise UserError(
            f"--model={model} --weights={weights} --crop={crop}: {' '.join(str(error).split())[:200]}; "
            "if you have no network connection, give a weights file"
        ) from None
    return network, module.preprocess_input, model


def application_module(name):
    """The module of keras.applications that defines the model of this name, with its preprocess_input."""
    import keras

    builder = getattr(keras.applications, name, None) if name[:1].isupper() else None
    if builder is not None:  # its __module__ is keras.src.applications.resnet, for example
        return getattr(keras.applications, builder.__module__.split(".")[-1])
    known = sorted({n for n in dir(keras.applications) if n[:1].isupper()})
    raise UserError(f"--model={name}: not in keras.applications{class_list.closest(name, known)}")


def _load_own_model(path, layer, crop):
    """A .keras file as a model whose output is that of `layer`, averaged over the image if it is a map."""
    import keras

    if not path.endswith(".keras"):
        raise UserError(
            f"{path}: expected a .keras file; other formats, .h5 among them, "
            "can run code when loaded; save it as .keras"
        )
    paths.open_input(path, "a .keras file").close()
    try:
        network = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises many kinds
        text = " ".join(str(error).split())
        if "ambda" in text:
            text = "it has a Lambda layer, which would run code that comes with the file"
        raise UserError(
            f"{path}: cannot load this model: {text[:200]}; save it as .keras, without Lambda layers"
        ) from None
    shape = tuple(network.inputs[0].shape)
    if len(network.inputs) != 1 or len(shape) != 4 or shape[-1] not in (1, 3):
        inputs = ", ".join(str(tuple(i.shape)) for i in network.inputs)
        raise UserError(f"{path}: takes inputs of shape {inputs}, expected one of images with 1 or 3 channels, the last axis")
    size = network.inputs[0].shape[1:3]
    if any(side not in (None, crop) for side in size):
        wanted = " x ".join(map(str, size))
        raise UserError(f"{path}: takes images of {wanted} pixels, not of --crop={crop}; give the right --crop")
    output = network.outputs[0]
    if layer:
        names = [part.name for part in network.layers]
        if layer not in names:
            hint = class_list.closest(layer, names)
            raise UserError(f"{path}: has no layer {layer}{hint}; its layers: {', '.join(names)[:300]}")
        output = network.get_layer(layer).output
    if len(output.shape) == 4:
        output = keras.layers.GlobalAveragePooling2D()(output)
    if len(output.shape) != 2:
        raise UserError(
            f"{path}: the output of the layer has shape {tuple(output.shape)}, expected one vector or one map per image"
        )
    return keras.Model(network.inputs, output)


def load_hub_preset(preset):
    """Loads an image backbone of Keras Hub. preset: a folder on disk, or a name.

    Returns:
        (keras.Model from float32 [B, height, width, 3] to features [B, D]; a function that turns uint8 [height, width, 3] RGB of
        any size into what the model expects, as the preset says).
    """
    try:
        import keras_hub
    except ImportError as error:
        raise UserError(f"keras_hub cannot be imported ({error}): pip install -r requirements-hub.txt") from None
    import keras

    try:
        backbone = keras_hub.models.Backbone.from_preset(preset, dtype="float32")
        converter = keras_hub.layers.ImageConverter.from_preset(preset)
        inputs = keras.Input((*converter.image_size, 3))
        network = keras.Model(inputs, _hub_feature(backbone, inputs))
    except Exception as error:  # a download, a folder or a model of something else, and Keras Hub raises many kinds
        raise UserError(f"--keras_hub_preset={preset}: cannot be used: {' '.join(str(error).split())[:200]}") from None
    return network, lambda pixels: np.asarray(converter(pixels[None].astype(np.float32)))[0]


def _hub_feature(backbone, images):
    """The feature that a backbone has for images: what CLIP and SigLIP compare with texts, the class token, or the mean of its map."""
    import keras

    if hasattr(backbone, "get_vision_embeddings"):
        return backbone.get_vision_embeddings(images)
    output = backbone({name: images for name in backbone.input} if isinstance(backbone.input, dict) else images)
    if len(output.shape) == 4:
        return keras.layers.GlobalAveragePooling2D(data_format="channels_last")(output)
    if type(backbone).__name__ in WITH_CLASS_TOKEN and getattr(backbone, "use_class_token", True):
        return output[:, 0]
    return keras.layers.GlobalAveragePooling1D(data_format="channels_last")(output)
