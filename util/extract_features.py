"""Computes a feature for every image with a convolutional network: the first step if you have images but no features.

    python util/extract_features.py --image_dir=images --output_file=data/all.tsv --write_class_list=data/classes.txt

By default image_dir holds one folder of images per class. With --image_list the rows of that list are the images, and
the output keeps its columns. The feature is added as text, or the rows are written as arrays with --output_dir.

Every image is resized by its shorter side, and its middle is cut out. JPEG, PNG, WebP and TIFF are read, in colour or
grey, with 8 or 16 bits, and turned as EXIF says; transparency is dropped. Images that cannot be read are listed in
<output>.rejected.tsv. To continue an interrupted run, run the same command again. docs/images.md shows more.
"""
import hashlib
import os
import sys
from typing import NamedTuple

import numpy as np
from absl import flags
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import array_writer, arrays, atomic, class_list, command, images, paths, threads, tsv
from util.lib.errors import UserError, warn
from util.lib.progress_folder import ProgressFolder

# Input.
flags.DEFINE_string("image_dir", None, "Folder of the images; nothing outside it is read.", required=True)
flags.DEFINE_string("image_list", None, "Tab-separated list of images; by default each folder in image_dir is a class.")
flags.DEFINE_list(
    "list_columns", ["key", "class"],
    "Columns of image_list, separated by commas, in their order: key and class, and url and label if it has them.",
)
flags.DEFINE_enum("path_column", "key", ["key", "url"], "Column of image_list that holds the path below image_dir.")
flags.DEFINE_enum(
    "on_bad_row", "skip", ["error", "skip"],
    "Images that cannot be read. error: stop at the first. skip: leave them out, list them in <output>.rejected.tsv.",
)
# Output.
flags.DEFINE_string("output_file", None, "Rows as text: .tsv or .tsv.gz.")
flags.DEFINE_string("output_dir", None, "Folder for arrays, instead of output_file; needs class_list and split.")
flags.DEFINE_string("class_list", None, "Class list of the arrays.")
flags.DEFINE_enum("split", None, ["train", "val", "all"], "Array to write; train and val need verification labels.")
flags.DEFINE_string("write_class_list", None, "Class list to write: the classes of the images, sorted.")
# Model.
flags.DEFINE_string(
    "model", "ResNet50", "Name of a model in keras.applications; the feature is its last map, averaged over the image."
)
flags.DEFINE_string("weights", "imagenet", "imagenet (Keras downloads it), none (random) or the path of a file.")
flags.DEFINE_string("keras_model", None, "Your own network, a .keras file, instead of model and weights.")
flags.DEFINE_string("layer", None, "Layer of keras_model whose output is the feature; by default the model's output.")
flags.DEFINE_integer("resize", 256, "Pixels of the shorter side after resizing.", lower_bound=1)
flags.DEFINE_integer("crop", 224, "Pixels of each side of the middle that is cut out.", lower_bound=1)
flags.DEFINE_integer("batch_size", 32, "Images per batch; does not change the features.", lower_bound=1)

COLUMNS = ("key", "url", "class", "label")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
BLOCK_ROWS = 256  # rows in a block that goes into an array
READ_AHEAD = 2  # batches of images that threads read while the network works on one


class Image(NamedTuple):
    """One image: its line in the list, from 1, its columns as {name: text}, and its path below image_dir."""

    line: int
    columns: dict
    path: str


def list_folders(image_dir):
    """The images in a folder of class folders, a sorted list of Image. The key is class/name, as in the folder."""
    found = []
    for name in sorted(os.listdir(image_dir)):
        for below, folders, files in os.walk(os.path.join(image_dir, name)):  # nothing if it is a file
            folders.sort()
            for file in sorted(files):
                if file.lower().endswith(SUFFIXES):
                    key = os.path.relpath(os.path.join(below, file), image_dir).replace(os.sep, "/")
                    if any(c in key for c in "\t\n\r") or not key.isprintable():
                        raise UserError(
                            f"{image_dir}: {key!r}: a name that a tab-separated file cannot hold; rename it"
                        )
                    found.append(Image(len(found) + 1, {"key": key, "class": name}, key))
    if not found:
        raise UserError(
            f"{image_dir}: no images in folders below it, expected a folder per class; or give an --image_list"
        )
    return found


def read_list(path, names, path_column):
    """The images of a tab-separated list whose columns are `names`, a list of Image."""
    found = []
    for number, columns in tsv.plain_columns(path, names, "reading the list"):
        values = dict(zip(names, columns))
        if not values["key"]:
            raise UserError(f"{path}:{number}: an empty key; every image needs one")
        if "label" in values and values["label"] not in ("1", "0", "-1"):
            raise UserError(f'{path}:{number}: verification label "{values["label"]}", expected 1, 0 or -1')
        found.append(Image(number, values, values[path_column]))
    if not found:
        raise UserError(f"{path}: lists no images, expected {', '.join(names)}, tab-separated")
    return found


def load_class_list(path, found, source, output_dir=None):
    """Reads a class list that must have every class in `found`, those of `source`, and agree with one in output_dir."""
    names = class_list.load(path)
    for name in found:
        if name not in names:
            raise UserError(f'{source}: class "{name}" is not in {path}{class_list.closest(name, names)}')
    if output_dir:
        atomic.make_folder(output_dir)
        class_list.check_beside(output_dir, names, path)
    return names


def image_reader(image_dir, resize, crop):
    """A function from a path below image_dir to (uint8 [crop, crop, 3] RGB, "") or (None, why it cannot be used)."""

    def read(path):
        full_path = images.path_below(image_dir, path)
        pixels, why = images.read(full_path) if full_path else (None, "lies outside image_dir")
        return (None, why) if pixels is None else (images.middle(pixels, resize, crop), "")

    return read


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


class Progress:
    """The features computed so far, kept in a folder until the output is written, so that a run can be resumed.

    Args:
        folder: <output>.progress. identity: a dict for JSON; a folder that holds another one is started anew.
        dim: numbers per feature.
    """

    def __init__(self, folder, identity, dim):
        self._folder = ProgressFolder(folder, identity, ("features",))
        self.dim, self._record_size, self._path = dim, 4 * (dim + 1), self._folder.file("features")
        self._file = open(self._path, "ab")  # noqa: SIM115

    def count(self, multiple):
        """The number of images done, a multiple of `multiple`; removes the rest that a killed run left."""
        done = os.path.getsize(self._path) // self._record_size // multiple * multiple
        self._file.truncate(done * self._record_size)
        return done

    def add(self, usable, features):
        """Keeps the features of the next images. usable: bool [B]. features: float32 [B, D]."""
        self._file.write(np.concatenate([usable[:, None], features], axis=1, dtype=np.float32).data)
        self._file.flush()

    def records(self):
        """float32 [N, 1 + D], memory-mapped: 1 if the image can be used, else 0, then its feature."""
        return np.memmap(self._path, np.float32, "r").reshape(-1, self.dim + 1)

    def remove(self):
        """Deletes the folder."""
        self._file.close()
        self._folder.remove()


def _size_and_date(path):
    """What changes when a file is replaced, two str; empty where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return "", ""
    return str(status.st_size), str(status.st_mtime_ns)


def run_identity(listed, image_dir, files, **settings):
    """What a run must have in common with an interrupted one to resume it, as a dict for JSON.

    Args:
        listed: list of Image. files: paths of which size and date count; names that are no files are passed over.
        settings: further values.
    """
    digest = hashlib.sha256()
    for image in listed:
        columns = [*image.columns.values(), *_size_and_date(os.path.join(image_dir, image.path))]
        digest.update("\t".join([*columns, "\n"]).encode(errors="surrogateescape"))
    return {
        "images": digest.hexdigest(),
        "image_dir": os.path.realpath(image_dir),
        "files": [[os.path.getsize(path), os.path.getmtime(path)] for path in files if path and os.path.isfile(path)],
        **settings,
    }


def extract(listed, read, network, preprocess, progress, *, crop, batch_size, on_bad_row, source):
    """Runs the network over the images that are not done yet and adds their features to the progress.

    Args:
        listed: list of Image. read: of image_reader. network, preprocess: of load_network. progress: Progress.
        crop, batch_size, on_bad_row: the flags. source: where the list comes from, for messages.

    Returns:
        {line: why} of the images that cannot be used.
    """
    import tensorflow as tf

    channels, reasons = network.inputs[0].shape[-1], {}
    run = tf.function(lambda pixels: network(preprocess(pixels), training=False))
    done = progress.count(batch_size)
    with tqdm(total=len(listed), initial=done, desc="extracting features", unit="image", disable=None) as bar:
        paths = (image.path for image in listed[done:])
        results = threads.in_order(read, paths, max(2, os.cpu_count() or 2), ahead=READ_AHEAD * batch_size)
        for start in range(done, len(listed), batch_size):
            part = listed[start : start + batch_size]
            batch, usable = np.zeros((batch_size, crop, crop, channels), np.float32), np.zeros(len(part), bool)
            for i, image in enumerate(part):
                pixels, why = next(results)
                if pixels is not None:
                    usable[i] = True
                    batch[i] = pixels if channels == 3 else pixels.mean(axis=2, keepdims=True)
                elif on_bad_row == "error":
                    hint = "--on_bad_row=skip leaves such images out"
                    raise UserError(f"{source}:{image.line}: {image.path}: {why} ({hint})")
                else:
                    reasons[image.line] = why
            # The batch is always full, so that a feature has the same bits whatever else is in the batch.
            features = run(tf.constant(batch)).numpy()[: len(part)]
            if not np.isfinite(features[usable]).all():
                raise UserError(
                    f"{part[0].path}: the model gives features that are not finite from this image on; "
                    "use another model"
                )
            progress.add(usable, features.reshape(len(part), progress.dim) * usable[:, None])
            bar.update(len(part))
    return reasons


def write_text(path, listed, records, names):
    """Writes a row per usable image: its columns `names`, then its feature. records: of Progress."""
    with atomic.whole_file(path) as file:
        for image, record in zip(tqdm(listed, desc="writing", unit="row", disable=None, delay=1), records):
            if record[0]:
                columns = [image.columns[name] for name in names]
                feature = ",".join([f"{x:.7g}" for x in record[1:].tolist()])
                file.write("\t".join([*columns, feature]).encode() + b"\n")


def blocks_of(listed, records, class_names):
    """Yields the usable images as blocks of rows, tsv.Block, without those labelled -1. records: of Progress."""
    class_ids = {name: i for i, name in enumerate(class_names)}
    for start in range(0, len(listed), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        good = [
            (image, record) for image, record in zip(listed[part], records[part])
            if record[0] and image.columns.get("label") != "-1"
        ]
        yield tsv.Block(
            keys=[image.columns["key"] for image, _ in good],
            class_ids=np.array([class_ids[image.columns["class"]] for image, _ in good], np.int32),
            labels=np.array([int(image.columns.get("label", 0)) for image, _ in good], np.int32),
            lines=np.array([image.line for image, _ in good], np.int64),
            features=np.array([record[1:] for _, record in good], np.float32).reshape(len(good), records.shape[1] - 1),
            rejected=[], num_lines=len(listed[part]), num_dropped=0,
        )


def write_arrays(path, listed, records, class_names, split):
    """Writes the usable images as the array of a split, with its keys and its class list. records: of Progress."""
    blocks = blocks_of(listed, records, class_names)
    if not array_writer.write(blocks, path, class_names, grouped=split == "all", verified=split != "all", source=path):
        raise UserError(f"{path}: no rows are left, all usable images are labelled -1; verify some")


def write_rejected(path, listed, usable, reasons, read):
    """Lists the images that cannot be used: line, reason, path.

    Args:
        usable: [N], 1 or 0 per image. read: of image_reader.
        reasons: {line: why}; images of an interrupted run, which it lacks, are read again to find out.
    """
    bad = [image for image, good in zip(listed, usable) if not good]
    with atomic.whole_file(path) as file:
        for image in bad:
            why = reasons.get(image.line) or read(image.path)[1]
            file.write(f"{image.line}\t{why}\t{image.path}\n".encode())
    warn(f"{len(bad)} images left out; {path} has each with its reason")


def check_flags(
    *, image_dir, image_list, list_columns, path_column, output_file, output_dir, class_path, split, keras_model, layer,
    resize, crop,
):
    """Checks flags against each other; the arguments are their values. Returns the path of the output."""
    if crop > resize:
        raise UserError(f"--crop={crop} is larger than --resize={resize}; the cut-out must fit into the image")
    if bool(output_file) == bool(output_dir):
        raise UserError("give --output_file for text, or --output_dir with --class_list and --split for arrays")
    if output_dir and not (class_path and split):
        raise UserError("--output_dir needs --class_list and --split, to write arrays")
    if not {"key", "class"} <= set(list_columns) <= set(COLUMNS) or path_column not in list_columns:
        raise UserError(
            f"--list_columns={','.join(list_columns)}: expected key and class, and url and label if the list has them; "
            f"--path_column={path_column} must be one of them"
        )
    if not image_list and list_columns != ["key", "class"]:
        raise UserError("--list_columns describes an --image_list; give one, or leave the columns out")
    if layer and not keras_model:
        raise UserError("--layer names a layer of a --keras_model; give one, or leave the layer out")
    if split in ("train", "val") and "label" not in list_columns:
        raise UserError(f"--split={split} needs verification labels: an --image_list with label among --list_columns")
    if not os.path.isdir(image_dir):
        raise UserError(f"{image_dir}: no such folder, expected the images")
    return output_file or os.path.join(output_dir, f"{split}.npy")


def main():
    opt = flags.FLAGS
    path = check_flags(
        image_dir=opt.image_dir, image_list=opt.image_list, list_columns=opt.list_columns, path_column=opt.path_column,
        output_file=opt.output_file, output_dir=opt.output_dir, class_path=opt.class_list, split=opt.split,
        keras_model=opt.keras_model, layer=opt.layer, resize=opt.resize, crop=opt.crop,
    )
    source = opt.image_list or opt.image_dir
    outputs = {"the output": path, "rejected images": f"{path}.rejected.tsv", "--write_class_list": opt.write_class_list}
    outputs |= {"its keys": arrays.keys_path(path)} if opt.output_dir else {}
    inputs = {"--image_list": opt.image_list, "--class_list": opt.class_list, "--keras_model": opt.keras_model, "--weights": opt.weights}
    paths.check_distinct(outputs, inputs)
    listed = read_list(source, opt.list_columns, opt.path_column) if opt.image_list else list_folders(source)
    found = sorted({image.columns["class"] for image in listed})
    class_names = load_class_list(opt.class_list, found, source, opt.output_dir) if opt.class_list else None
    command.import_tensorflow()
    network, preprocess, called = load_network(
        model=opt.model, weights=opt.weights, keras_model=opt.keras_model, layer=opt.layer, crop=opt.crop
    )
    dim = network.outputs[0].shape[-1]
    identity = run_identity(
        listed, opt.image_dir, [opt.keras_model, opt.weights], model=called, weights=opt.weights, layer=opt.layer,
        resize=opt.resize, crop=opt.crop, batch=opt.batch_size, path_column=opt.path_column, dim=dim,
        on_bad_row=opt.on_bad_row,
    )
    atomic.check_writable(outputs.values())
    progress = Progress(f"{path}.progress", identity, dim)
    read = image_reader(opt.image_dir, opt.resize, opt.crop)
    reasons = extract(
        listed, read, network, preprocess, progress, crop=opt.crop, batch_size=opt.batch_size,
        on_bad_row=opt.on_bad_row, source=source,
    )
    records = progress.records()
    num_good = int(records[:, 0].sum())
    if not num_good:
        first = next(iter(reasons.values()), "unknown")
        raise UserError(f"{opt.image_dir}: none of the {len(listed)} images can be read; the first: {first}")
    if opt.output_file:
        write_text(path, listed, records, [name for name in COLUMNS if name in opt.list_columns])
    else:
        write_arrays(path, listed, records, class_names, opt.split)
    if opt.write_class_list:
        atomic.write_text(opt.write_class_list, "".join(f"{name}\n" for name in found))
    if num_good < len(listed):
        write_rejected(f"{path}.rejected.tsv", listed, records[:, 0], reasons, read)
    del records  # Windows does not delete a file that is mapped
    progress.remove()
    left_out = f"; left out: {len(listed) - num_good}" if num_good < len(listed) else ""
    print(f"{path}: {num_good} images, features of {dim} numbers{left_out}")


if __name__ == "__main__":
    command.run(main)
