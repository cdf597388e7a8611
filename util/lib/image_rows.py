"""Lists of images: from a folder of class folders or a tab-separated list, their reader, and by what a resumed run knows them."""
import hashlib
import os
from typing import NamedTuple

from util.lib import atomic, class_list, images, tsv
from util.lib.errors import UserError

COLUMNS = ("key", "url", "class", "label")


class Image(NamedTuple):
    """One image: its line in the list, from 1, its columns as {name: text}, and its path below image_dir."""

    line: int
    columns: dict
    path: str


def check_flags(*, image_dir, image_list, list_columns, path_column, resize, crop, keras_model, layer):
    """Checks the flags of a command that reads images against each other; the arguments are their values."""
    if crop > resize:
        raise UserError(f"--crop={crop} is larger than --resize={resize}; the cut-out must fit into the image")
    if not {"key", "class"} <= set(list_columns) <= set(COLUMNS) or path_column not in list_columns:
        raise UserError(
            f"--list_columns={','.join(list_columns)}: expected key and class, and url and label if the list has them; "
            f"--path_column={path_column} must be one of them"
        )
    if not image_list and list_columns != ["key", "class"]:
        raise UserError("--list_columns describes an --image_list; give one, or leave the columns out")
    if layer and not keras_model:
        raise UserError("--layer names a layer of a --keras_model; give one, or leave the layer out")
    if not os.path.isdir(image_dir):
        raise UserError(f"{image_dir}: no such folder, expected the images")


def load(image_dir, image_list, list_columns, path_column):
    """The images of a list, or where there is none those of a folder of class folders: a list of Image."""
    return read_list(image_list, list_columns, path_column) if image_list else list_folders(image_dir)


def list_folders(image_dir):
    """The images in a folder of class folders, a sorted list of Image. The key is class/name, as in the folder."""
    found = []
    for name in sorted(os.listdir(image_dir)):
        for below, folders, files in os.walk(os.path.join(image_dir, name)):  # nothing if it is a file
            folders.sort()
            for file in sorted(files):
                if file.lower().endswith(images.SUFFIXES):
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
        if not values["class"].strip():
            raise UserError(f"{path}:{number}: an empty class name; every image needs one")
        if "label" in values and values["label"] not in ("1", "0", "-1"):
            raise UserError(f'{path}:{number}: verification label "{values["label"]}", expected 1, 0 or -1')
        found.append(Image(number, values, values[path_column]))
    if not found:
        raise UserError(f"{path}: lists no images, expected {', '.join(names)}, tab-separated")
    return found


def load_class_list(path, found, source, output_dir=None):
    """Reads a class list that must have every class in `found`, those of `source`, and agree with one in output_dir."""
    names = class_list.load(path)
    known = set(names)
    for name in found:
        if name not in known:
            raise UserError(f'{source}: class "{name}" is not in {path}{class_list.closest(name, names)}')
    if output_dir:
        atomic.make_folder(output_dir)
        class_list.check_beside(output_dir, names, path)
    return names


def image_reader(image_dir, convert):
    """A function from a path below image_dir, and whatever else convert takes, to (pixels, "") or (None, why it cannot be used).

    Args:
        convert: function from uint8 [height, width, 3] RGB to the pixels of a batch, all of one size.
    """

    def read(path, **options):
        full_path = images.path_below(image_dir, path)
        pixels, why = images.read(full_path) if full_path else (None, "lies outside image_dir")
        return (None, why) if pixels is None else (convert(pixels, **options), "")

    return read


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
