"""Ties what belongs together: beside an array, a file says which numbers, keys and class list it was written with.

    all_checksums.json    {"all.npy": "checksum 1c291ca3", "all_keys.txt": "checksum …", "classes.txt": "checksum …"}

Whoever opens the array compares. A file that was altered, or comes from another conversion, is then an error.
"""
import os
import zlib

import numpy as np

from util.lib import json_file, paths
from util.lib.errors import UserError, warn

BLOCK = 1 << 20  # bytes that are read at a time


def of(data):
    """The crc32 of bytes or of an array in C order, in words."""
    return in_words(zlib.crc32(memoryview(np.ascontiguousarray(data)) if isinstance(data, np.ndarray) else data))


def in_words(crc):
    """A crc32 as the suite's files keep it."""
    return f"checksum {crc:08x}"


def of_file(path, start=0):
    """The checksum of a file from byte `start` on, read block by block."""
    crc, block = 0, memoryview(bytearray(BLOCK))
    with paths.open_input(path, "a file of the suite") as file:
        file.seek(start)
        while size := file.readinto(block):
            crc = zlib.crc32(block[:size], crc)
    return in_words(crc)


def of_class_list(class_names):
    """The checksum of a class list, a list of str."""
    return of("\n".join(class_names).encode())


def beside(array_path):
    """`all_checksums.json` for `all.npy`."""
    return os.path.splitext(array_path)[0] + "_checksums.json"


def check(array_path, found, made_by="util/convert_data.py"):
    """Raises UserError where an array, or what belongs to it, is not what it was written with. Warns where that is unknown.

    Args:
        array_path: of the array. found: {file name: checksum} of what there is now. made_by: the command that makes it again.

    Returns:
        {file name: checksum} of what it was written with.
    """
    path = beside(array_path)
    if not os.path.exists(path):
        warn(f"{array_path}: has no {os.path.basename(path)}, so an altered or mixed-up file would not be noticed; {made_by} writes one")
        return {}
    expected = json_file.load(path, "checksums", json_file.Each(json_file.is_text), f"make {array_path} again with {made_by}")
    for name, checksum in found.items():
        if expected.get(name) != checksum:
            raise UserError(
                f"{os.path.join(os.path.dirname(array_path), name)}: is not what {array_path} was written with ({checksum}, "
                f"{os.path.basename(path)} has {expected.get(name)}); restore the file, or make the array again with {made_by}"
            )
    return expected
