"""Turns images into the suite's features with a convolutional network: the start, if you have images and no feature vectors.

    python util/extract_features.py --image_dir=images --output_file=data/all.tsv
    python util/extract_features.py --image_dir=images --image_list=verified.tsv --list_columns=key,class,label \
        --class_list=data/classes.txt --split=train --output_dir=data

Without --image_list, image_dir is a folder of class folders. The output keeps the columns of the list and adds the feature: as text, or,
with --class_list and --split, as arrays at once. Every image is resized by its shorter side, and its middle is cut out. JPEG, PNG, WebP
and TIFF are read, grey ones and 16-bit ones too, turned as EXIF says; transparency is dropped. What cannot be read is listed in
<output>.rejected.tsv. An interrupted run goes on where it stopped.
"""
import contextlib
import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 28))  # a small file can claim to be a huge image
import cv2
import numpy as np
from absl import flags
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import array_writer, atomic, class_list, command, tsv
from util.lib.errors import UserError, reason, warn

# Input.
flags.DEFINE_string("image_dir", None, "Folder of the images; nothing outside it is read.", required=True)
flags.DEFINE_string("image_list", None, "Tab-separated list of images; none: image_dir holds a folder for each class.")
flags.DEFINE_list("list_columns", ["key", "class"], "Columns of image_list, in order: key, class and, if there, url and label.")
flags.DEFINE_enum("path_column", "key", ["key", "url"], "The column that is a path below image_dir.")
flags.DEFINE_enum("on_bad_row", "skip", ["error", "skip"], "An image that cannot be read: leave it out and list it, or stop.")
# Output.
flags.DEFINE_string("output_file", None, "Rows as text: .tsv or .tsv.gz.")
flags.DEFINE_string("output_dir", None, "Folder for arrays, instead of output_file; with --class_list and --split.")
flags.DEFINE_string("class_list", None, "Class list of the arrays.")
flags.DEFINE_enum("split", None, ["train", "val", "all"], "Which array.")
flags.DEFINE_string("write_class_list", None, "Writes the classes of the images, sorted, as a class list to this path.")
# Model.
flags.DEFINE_string("model", "ResNet50", "Name of a model in keras.applications; its features are averaged over the image.")
flags.DEFINE_string("weights", "imagenet", "imagenet (Keras fetches them), none (random), or a weights file.")
flags.DEFINE_string("keras_model", None, "A .keras file of your own, instead of model and weights.")
flags.DEFINE_string("layer", None, "Layer of keras_model whose output is the feature; none: the model's output.")
flags.DEFINE_integer("resize", 256, "Pixels of the shorter side.", lower_bound=1)
flags.DEFINE_integer("crop", 224, "Pixels of each side of the middle that is cut out.", lower_bound=1)
flags.DEFINE_integer("batch_size", 32, "Images in one go; does not change the features.", lower_bound=1)

MOST_OBLONG = 100  # a strip of one pixel by thousands would be resized to gigabytes
COLUMNS = ("key", "url", "class", "label")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")


class Image(NamedTuple):
    """One image of the list: its columns, and its path below image_dir. `line` counts from 1."""

    line: int
    columns: dict
    path: str


def list_folders(image_dir):
    """The images of a folder of class folders, sorted: key class/name, class the folder's name."""
    images = []
    for name in sorted(os.listdir(image_dir)):
        folder = os.path.join(image_dir, name)
        if not os.path.isdir(folder):
            continue
        for below, folders, files in os.walk(folder):
            folders.sort()
            for file in sorted(files):
                if file.lower().endswith(SUFFIXES):
                    key = os.path.relpath(os.path.join(below, file), image_dir).replace(os.sep, "/")
                    if any(c in key for c in "\t\n\r") or not key.isprintable():
                        raise UserError(f"{image_dir}: {key!r}: a name that a tab-separated file cannot hold; rename it")
                    images.append(Image(len(images) + 1, {"key": key, "class": name}, key))
    if not images:
        raise UserError(f"{image_dir}: no images in folders below it, expected a folder for each class; or give an --image_list")
    return images


def read_list(path, names, path_column):
    """The images of a tab-separated list with the columns `names`."""
    images = []
    for number, columns in tsv.plain_columns(path, names, "reading the list"):
        values = dict(zip(names, columns))
        if not values["key"]:
            raise UserError(f"{path}:{number}: an empty key; every image needs one")
        if "label" in values and values["label"] not in ("1", "0", "-1"):
            raise UserError(f'{path}:{number}: verification label "{values["label"]}", expected 1, 0 or -1')
        images.append(Image(number, values, values[path_column]))
    return images


def read_pixels(image_dir, path, resize, crop):
    """Reads an image, resizes its shorter side to `resize` and cuts out its middle.

    Returns:
        (uint8 [crop, crop, 3] RGB, "") or (None, why it cannot be used).
    """
    folder = os.path.realpath(image_dir)
    full = os.path.realpath(os.path.join(folder, path))
    if not full.startswith(folder.rstrip(os.sep) + os.sep):
        return None, "lies outside image_dir"
    try:
        with open(full, "rb") as file:
            data = file.read()
    except OSError as error:
        return None, reason(error)
    if not data:
        return None, "the file is empty"
    if data.startswith(b"\xff\xd8") and b"\xff\xd9" not in data[-64:]:  # OpenCV would fill the rest with grey
        return None, "the JPEG is cut off"
    if data.startswith(b"\x89PNG") and b"IEND" not in data[-64:]:
        return None, "the PNG is cut off"
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None:
        return None, "not an image that can be read, or a too large one"
    height, width = image.shape[:2]
    if max(height, width) > MOST_OBLONG * min(height, width):
        return None, f"{width} x {height} pixels: one side is more than {MOST_OBLONG} times the other"
    scale = resize / min(height, width)
    size = max(crop, round(width * scale)), max(crop, round(height * scale))
    if size != (width, height):
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (image.shape[0] - crop) // 2, (image.shape[1] - crop) // 2
    return image[top : top + crop, left : left + crop, ::-1], ""


def load_network(opt):
    """Returns (a Keras model from pixels as its preprocessing leaves them to features, the preprocessing, text that names both)."""
    import keras

    if opt.keras_model:
        return _load_own_model(opt.keras_model, opt.layer, opt.crop), lambda pixels: pixels, opt.keras_model
    module = application_module(opt.model)
    weights = {"imagenet": "imagenet", "none": None}.get(opt.weights, opt.weights)
    try:
        network = getattr(keras.applications, opt.model)(
            include_top=False, weights=weights, pooling="avg", input_shape=(opt.crop, opt.crop, 3)
        )
    except Exception as error:  # a download or a file, and Keras raises whatever they raise
        raise UserError(
            f"--model={opt.model} --weights={opt.weights} --crop={opt.crop}: {' '.join(str(error).split())[:200]}; "
            "without a network, give a weights file"
        ) from None
    return network, module.preprocess_input, opt.model


def application_module(name):
    """The module of keras.applications that has a model of this name, and its preprocess_input."""
    import keras

    builder = getattr(keras.applications, name, None) if name[:1].isupper() else None
    if builder is not None:
        return getattr(keras.applications, builder.__module__.split(".")[-1])  # keras.src.applications.resnet, for example
    known = sorted({n for n in dir(keras.applications) if n[:1].isupper()})
    raise UserError(f"--model={name}: not in keras.applications{class_list.closest(name, known)}")


def _load_own_model(path, layer, crop):
    import keras

    if not path.endswith(".keras"):
        raise UserError(f"{path}: expected a .keras file; other formats, .h5 among them, can run code when loaded: save it as .keras")
    try:
        network = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises many kinds
        text = " ".join(str(error).split())
        if "ambda" in text:
            text = "it has a Lambda layer, which would run code of the file's own"
        raise UserError(f"{path}: cannot load this model: {text[:200]}; save it as .keras, without Lambda layers") from None
    output = network.outputs[0]
    size = network.inputs[0].shape[1:3]
    if any(side not in (None, crop) for side in size):
        raise UserError(f"{path}: takes images of {' x '.join(map(str, size))} pixels, not of --crop={crop}; give the right --crop")
    if layer:
        names = [part.name for part in network.layers]
        if layer not in names:
            raise UserError(f"{path}: has no layer {layer}{class_list.closest(layer, names)}; its layers: {', '.join(names)[:300]}")
        output = network.get_layer(layer).output
    if len(output.shape) == 4:
        output = keras.layers.GlobalAveragePooling2D()(output)
    if len(output.shape) != 2:
        raise UserError(f"{path}: the output of the layer has shape {tuple(output.shape)}, expected one vector or a map for each image")
    return keras.Model(network.inputs, output)


class Progress:
    """What is done so far, kept in <output>.progress until the output is written: a flag and a feature for each image."""

    def __init__(self, folder, identity, dim):
        self.folder, self._record = folder, 4 * (dim + 1)
        self._path, identity_path = os.path.join(folder, "features"), os.path.join(folder, "run.json")
        atomic.make_folder(folder)
        try:
            with open(identity_path, encoding="utf-8") as file:
                same = json.load(file) == identity
        except (OSError, ValueError):
            same = False
        if not same:
            with contextlib.suppress(FileNotFoundError):
                os.remove(self._path)
            atomic.write_json(identity_path, identity)
        self._file = open(self._path, "ab")  # noqa: SIM115
        self.dim = dim

    def count(self, multiple):
        """Images done, a multiple of the batch: what a kill left of a batch is cut off."""
        done = os.path.getsize(self._path) // self._record // multiple * multiple
        self._file.truncate(done * self._record)
        return done

    def add(self, usable, features):
        """usable: bool [B]. features: float32 [B, D]."""
        self._file.write(np.concatenate([usable[:, None], features], axis=1, dtype=np.float32).data)
        self._file.flush()

    def records(self):
        """float32 [N, 1 + D], memory-mapped: 1 or 0 for usable or not, then the feature."""
        return np.memmap(self._path, np.float32, "r").reshape(-1, self.dim + 1)

    def remove(self):
        self._file.close()
        for name in ("features", "run.json"):
            os.remove(os.path.join(self.folder, name))
        os.rmdir(self.folder)


def extract(images, opt, network, preprocess, progress, dim, on_bad):
    """Runs the network over the images that are not done yet. on_bad: function (Image, reason)."""
    import tensorflow as tf

    channels = network.inputs[0].shape[-1]
    run = tf.function(lambda pixels: network(preprocess(pixels), training=False))
    size = opt.batch_size
    starts = range(progress.count(size), len(images), size)
    bar = tqdm(total=len(images), initial=starts.start, desc="extracting features", unit="image", disable=None)
    with bar, ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as threads:
        def read(start):
            part = images[start : start + size]
            return part, [threads.submit(read_pixels, opt.image_dir, i.path, opt.resize, opt.crop) for i in part]

        ahead = [read(start) for start in starts[:2]]
        for number, _ in enumerate(starts):
            part, futures = ahead.pop(0)
            if number + 2 < len(starts):
                ahead.append(read(starts[number + 2]))  # read while the network works on this batch
            batch, usable = np.zeros((size, opt.crop, opt.crop, channels), np.float32), np.zeros(len(part), bool)
            for i, (image, future) in enumerate(zip(part, futures)):
                pixels, why = future.result()
                usable[i] = pixels is not None
                if usable[i]:
                    batch[i] = pixels if channels == 3 else pixels.mean(axis=2, keepdims=True)
                else:
                    on_bad(image, why)
            features = run(tf.constant(batch)).numpy()[: len(part)]  # always full batches: the same numbers whatever is in them
            if not np.isfinite(features[usable]).all():
                raise UserError(f"{part[0].path}: the model gives features that are not finite from this image on; use another model")
            progress.add(usable, features.reshape(len(part), dim) * usable[:, None])
            bar.update(len(part))


def write_text(path, images, records, names):
    """Writes the usable rows: the columns of the list, then the feature."""
    with atomic.whole_file(path) as file:
        for image, record in zip(tqdm(images, desc="writing", unit="row", disable=None, delay=1), records):
            if record[0]:
                columns = [image.columns[name] for name in names]
                file.write("\t".join([*columns, ",".join([f"{x:.7g}" for x in record[1:].tolist()])]).encode() + b"\n")


def blocks_of(images, records, class_ids, size=256):
    """Yields the usable images as tsv.Block, for array_writer.write. Label -1 is left out."""
    for start in range(0, len(images), size):
        part = [
            (image, record) for image, record in zip(images[start : start + size], records[start : start + size])
            if record[0] and image.columns.get("label") != "-1"
        ]
        yield tsv.Block(
            [image.columns["key"] for image, _ in part], [""] * len(part),
            np.array([class_ids[image.columns["class"]] for image, _ in part], np.int32),
            np.array([int(image.columns.get("label", 0)) for image, _ in part], np.int32),
            np.array([image.line for image, _ in part], np.int64),
            np.array([record[1:] for _, record in part], np.float32).reshape(len(part), -1), [], size, 0,
        )


def check_flags(opt):
    """Flags that contradict each other. Returns the path that the output gets."""
    if opt.crop > opt.resize:
        raise UserError(f"--crop={opt.crop} is larger than --resize={opt.resize}; a cut-out must fit into the image")
    if bool(opt.output_file) == bool(opt.output_dir):
        raise UserError("give --output_file for text, or --output_dir with --class_list and --split for arrays")
    if opt.output_dir and not (opt.class_list and opt.split):
        raise UserError("--output_dir needs --class_list and --split, to write arrays")
    if not {"key", "class"} <= set(opt.list_columns) <= set(COLUMNS) or opt.path_column not in opt.list_columns:
        raise UserError(f"--list_columns={','.join(opt.list_columns)}: expected key and class, and of url and label those that are there")
    if not opt.image_list and opt.list_columns != ["key", "class"]:
        raise UserError("--list_columns describes an --image_list; give one, or leave the columns out")
    if opt.layer and not opt.keras_model:
        raise UserError("--layer names a layer of a --keras_model; give one, or leave the layer out")
    if opt.split in ("train", "val") and "label" not in opt.list_columns:
        raise UserError(f"--split={opt.split} needs verification labels: an --image_list with label among --list_columns")
    if not os.path.isdir(opt.image_dir):
        raise UserError(f"{opt.image_dir}: no such folder, expected the images")
    return opt.output_file or os.path.join(opt.output_dir, f"{opt.split}.npy")


def main():
    opt = flags.FLAGS
    path = check_flags(opt)
    images = read_list(opt.image_list, opt.list_columns, opt.path_column) if opt.image_list else list_folders(opt.image_dir)
    found = sorted({image.columns["class"] for image in images})
    if opt.class_list:
        names = class_list.load(opt.class_list)
        for name in found:
            if name not in names:
                hint = class_list.closest(name, names)
                raise UserError(f'{opt.image_list or opt.image_dir}: class "{name}" is not in {opt.class_list}{hint}')
        if opt.output_dir:
            atomic.make_folder(opt.output_dir)
            class_list.check_beside(opt.output_dir, names, opt.class_list)
    if not images:
        raise UserError(f"{opt.image_list}: lists no images, expected {', '.join(opt.list_columns)}, tab-separated")
    command.import_tensorflow()
    network, preprocess, called = load_network(opt)
    dim = network.outputs[0].shape[-1]
    listed = hashlib.sha256("\n".join("\t".join(i.columns.values()) for i in images).encode(errors="surrogateescape")).hexdigest()
    identity = {
        "model": called, "weights": opt.weights, "layer": opt.layer, "resize": opt.resize, "crop": opt.crop, "batch": opt.batch_size,
        "images": listed, "image_dir": os.path.realpath(opt.image_dir), "path_column": opt.path_column, "dim": dim,
        "files": [[os.path.getsize(p), os.path.getmtime(p)] for p in (opt.keras_model, opt.weights) if p and os.path.isfile(p)],
    }
    progress = Progress(f"{path}.progress", identity, dim)
    rejected_path = f"{path}.rejected.tsv"
    bad = {}

    def on_bad(image, why):
        if opt.on_bad_row == "error":
            place = f"{opt.image_list or opt.image_dir}:{image.line}"
            raise UserError(f"{place}: {image.path}: {why} (--on_bad_row=skip leaves such images out)")
        bad[image.line] = why

    extract(images, opt, network, preprocess, progress, dim, on_bad)
    records = progress.records()
    num_good = int(records[:, 0].sum())
    if not num_good:
        raise UserError(f"{opt.image_dir}: none of the {len(images)} images can be read; the first: {next(iter(bad.values()), 'unknown')}")
    if opt.output_file:
        write_text(path, images, records, [name for name in COLUMNS if name in opt.list_columns])
    else:
        class_ids = {name: i for i, name in enumerate(names)}
        array_writer.write(
            blocks_of(images, records, class_ids), path, len(names), grouped=opt.split == "all", verified=opt.split != "all", source=path
        )
        class_list.keep_beside(opt.output_dir, names)
    if opt.write_class_list:
        atomic.write_text(opt.write_class_list, "".join(f"{name}\n" for name in found))
    if num_good < len(images):
        write_rejected(rejected_path, images, records, bad, opt)
    del records
    progress.remove()
    left_out = f"; left out: {len(images) - num_good}" if num_good < len(images) else ""
    print(f"{path}: {num_good} images, features of {dim} numbers{left_out}")


def write_rejected(path, images, records, bad, opt):
    """Lists the images left out with their reasons; those of an earlier, interrupted run are looked at again."""
    with atomic.whole_file(path) as file:
        for image, usable in zip(images, records[:, 0]):
            if not usable:
                why = bad.get(image.line) or read_pixels(opt.image_dir, image.path, opt.resize, opt.crop)[1]
                file.write(f"{image.line}\t{why}\t{image.path}\n".encode())
    warn(f"{int((records[:, 0] == 0).sum())} images left out; {path} has each with its reason")


if __name__ == "__main__":
    command.run(main)
