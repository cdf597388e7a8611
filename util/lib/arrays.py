"""Opens the arrays of docs/formats.md: without pickle, checked in full, and with features that stay in their files."""
import os
import threading
import tokenize
import zlib

import numpy as np
from tqdm import tqdm

from util.lib import checksums, class_list, paths
from util.lib.errors import UserError, reason, warn

NUMBERS_PER_BLOCK = 1 << 18  # of an array, that a check reads at a time
UNREADABLE = (  # what numpy raises for the header of a file that is no array, or not whole
    ValueError, TypeError, SyntaxError, OverflowError, EOFError, MemoryError, IndexError, KeyError, AttributeError, RecursionError,
    tokenize.TokenError,
)
EMBED_NORMS = ("log", "scaled_log", "signed_log", "l2_norm", "no_norm")  # model.normalize_features has their equations
LOG_NEEDS = "--embed_norm=log takes log(1 + x), which needs every feature above -1: train with --embed_norm=auto"
USUAL_MEAN, ROUNDING = (0.1, 10), 1e-3  # of features that suit log(1 + x); a centre of many zeros may be -1e-8
SCALED_LENGTH = 6  # of references, in the mean, where scaled_log takes the logarithm; docs/experiments.md has other lengths


def open_array(path, what, made_by, ndim=2):
    """Opens a .npy file memory-mapped for reading, never unpickling.

    Args:
        path: of the file. what: the shape in words, for messages. made_by: the command that makes the file.
        ndim: how many axes it must have.

    Returns:
        float32 memmap.
    """
    try:
        with paths.open_input(path, f"{what}; make it with {made_by}") as file:
            magic = file.read(6)
        if magic != b"\x93NUMPY":
            raise UserError(f"{path}: is not a .npy file, expected {what}; make it with {made_by}")
        array = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise UserError(f"{path}: cannot read: {reason(error)}; make it with {made_by}") from None
    except UNREADABLE as error:
        if "Python objects" in str(error) or "allow_pickle" in str(error):
            raise UserError(
                f"{path}: holds pickled objects, which are never loaded; expected {what}, make it again with {made_by}"
            ) from None
        raise UserError(f"{path}: the array is cut off or empty ({error}); make it again with {made_by}") from None
    if array.dtype != np.float32 or array.ndim != ndim or 0 in array.shape[1:] or not array.flags.c_contiguous:
        raise UserError(
            f"{path}: found {array.dtype} {array.shape}, expected {what} as float32 in C order; make it with {made_by}"
        )
    return array


def read_header(file):
    """Reads the header of an array in C order from a binary .npy file. Returns (shape, dtype); raises one of UNREADABLE."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(file)
    if fortran_order or dtype.hasobject:
        raise ValueError("Fortran order" if fortran_order else "it holds pickled objects")
    return shape, dtype


def load_references(path, **expected):
    """Loads ref.npy, checked as check_references does. Returns float32 (num_class, num_ref, img_dim), in memory."""
    array = open_array(path, "(num_class, num_ref, img_dim)", "util/find_reference.py or convert_data.py --split=ref", ndim=3)
    check_references(path, array, **expected)
    return np.array(array)


def check_references(name, array, *, num_classes, embed_norm, num_ref=None, img_dim=None):
    """Raises UserError where references are not of the sizes that are not None, or no features that embed_norm allows.

    Args:
        name: of the array, for messages. array: float32 (num_class, num_ref, img_dim). num_classes, num_ref, img_dim: int that its
            axes must have, or None. embed_norm: one of EMBED_NORMS.
    """
    for size, expected, what, remedy in (
        (array.shape[0], num_classes, "classes", "use the class list that it was made with"),
        (array.shape[1], num_ref, "references per class", "give that as --num_ref, or make ref.npy again"),
        (array.shape[2], img_dim, "numbers per feature", "give that as --img_dim, or make ref.npy again"),
    ):
        if expected is not None and size != expected:
            raise UserError(f"{name}: {size} {what} in an array of shape {array.shape}, expected {expected}; {remedy}")
    if not np.isfinite(array).all():
        c, r, d = np.argwhere(~np.isfinite(array))[0]
        raise UserError(f"{name}: value {array[c, r, d]} at [{c}, {r}, {d}], expected finite numbers; make it again")
    if embed_norm == "log" and array.min() <= -1:
        c, r, d = np.argwhere(array <= -1)[0]
        raise UserError(f"{name}: value {array[c, r, d]} at [{c}, {r}, {d}]; {LOG_NEEDS}")


def check_references_checksum(folder, references, class_names, unverified=None):
    """Raises UserError where the ref.npy of a folder was altered or belongs to another class list.

    Args:
        folder: path. references: float32 [C, R, D], as loaded. class_names: list of str [C].
        unverified: FeatureArray of the folder's all.npy; warns where the references were found on another one.
    """
    path = os.path.join(folder, "ref.npy")
    now = {"ref.npy": checksums.of(references), "classes.txt": checksums.of_class_list(class_names)}
    made_from = checksums.check(path, now, "util/find_reference.py").get("all.npy")
    if unverified is not None and made_from not in (None, unverified.checksum):
        warn(f"{path}: was found on other rows than those of {unverified.path}; util/find_reference.py finds them anew")


def classes_with_references(references):
    """Which classes have references: float32 [C, R, D] -> bool [C]. find_reference.py leaves zeros for a class without rows."""
    return np.abs(references).max(axis=(1, 2)) > 0


def suit_log(lowest, mean):
    """Whether features with this lowest number and this mean suit log(1 + x): never negative, neither tiny nor huge."""
    return lowest > -ROUNDING and USUAL_MEAN[0] <= mean <= USUAL_MEAN[1]


def scale_for(references):
    """The scale of scaled_log: it takes the mean length of references, float32 [C, R, D], to SCALED_LENGTH.

    Returns:
        float, of three digits: the order of a sum, which may differ by machine, must not keep a run from being resumed.
    """
    classes = np.flatnonzero(classes_with_references(references))
    length = np.mean([np.linalg.norm(references[c].astype(np.float64), axis=-1).mean() for c in classes])  # without a copy of all
    return float(f"{min(SCALED_LENGTH / length, 1e37):.3g}")


def keys_path(array_path):
    """`all_keys.txt` for `all.npy`."""
    return os.path.splitext(array_path)[0] + "_keys.txt"


def rows_by_class(class_ids, num_classes):
    """The rows of each class, ascending: int [N] -> list of C arrays of int. Once over all rows, however many classes there are."""
    order = np.argsort(class_ids, kind="stable")
    return np.split(order, np.searchsorted(class_ids[order], np.arange(1, num_classes)))


def files_of(name, path):
    """An array and what is written beside it, for paths.check_distinct. name: what the array is, for messages. path: of the array."""
    return {name: path, "its keys": keys_path(path), "its checksums": checksums.beside(path)}


def load_keys(array_path, num_rows):
    """The key of every row of an array, list of str."""
    path = keys_path(array_path)
    keys = class_list.read_lines(path, "sample keys") if os.path.exists(path) else None
    if keys is None:
        raise UserError(f"{path}: not found beside {array_path}; the conversion did not finish, convert again")
    if len(keys) != num_rows:
        raise UserError(f"{path}: {len(keys)} keys for {num_rows} rows of {array_path}; convert again")
    for number, key in enumerate(keys, 1):
        if not key or "\t" in key or "\r" in key:  # of a file of the user's own; every table of scores would be cut there
            raise UserError(f"{path}:{number}: key {key[:40]!r}, expected a text without tabs; give each row one")
    return keys


class FileRows:
    """The first columns of a float32 [N, W] .npy file, whose rows are read when they are asked for.

    No memory map: a file that is cut off while it is read is then an error, and not a SIGBUS that ends the process.

    Args:
        path: of the file. offset: bytes in front of the numbers. shape: (N, W). columns: how many columns to give.
    """

    def __init__(self, path, offset, shape, columns):
        self._path, self._offset, self._width = path, offset, shape[1]
        self._file, self._lock = open(path, "rb", buffering=0), threading.Lock()  # noqa: SIM115
        self.shape = shape[0], columns

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        """Reads rows. rows: a slice of step 1, or int [n]. Returns float32 [n, columns]."""
        if isinstance(rows, slice):
            return self.whole(rows)[:, : self.shape[1]]
        found = np.empty((len(rows), self.shape[1]), np.float32)
        for i, row in enumerate(rows):
            found[i] = self._read(int(row), 1)[0, : self.shape[1]]
        return found

    def __array__(self, dtype=None, copy=None):
        return np.array(self[:], dtype)

    def whole(self, rows):
        """All columns of a slice of rows, float32 [n, W]."""
        first, last, _ = rows.indices(len(self))
        return self._read(first, max(last - first, 0))

    def _read(self, first, count):
        size, start, pieces = 4 * self._width * count, self._offset + 4 * self._width * first, []
        while size > 0:
            piece = self._read_bytes(start, min(size, 1 << 30))
            if not piece:
                raise UserError(f"{self._path}: was cut off while it was read, at row {first} or later; convert again, then run again")
            pieces.append(piece)
            start, size = start + len(piece), size - len(piece)
        return np.frombuffer(pieces[0] if len(pieces) == 1 else b"".join(pieces), np.float32).reshape(count, self._width)

    def _read_bytes(self, start, size):
        if hasattr(os, "pread"):  # threads read side by side
            return os.pread(self._file.fileno(), size, start)
        with self._lock:
            self._file.seek(start)
            return self._file.read(size)


class FeatureArray:
    """train.npy, val.npy or all.npy, opened and checked in full.

    Args:
        path: of the array. class_names: list of str, that it must have been made with. verified: whether it has a column of labels.
        img_dim: int that it must have, or None. embed_norm: normalisation that its features must allow, auto, or None.
        grouped: whether rows must be grouped by class. keys: whether a file of keys must be beside it.

    Attributes:
        features: FileRows, float32 [N, D]. class_ids: int32 [N]. labels: int8 [N], or None. num_rows, img_dim: int.
        first: int [C + 1], where each class begins and the last ends, or None unless grouped. checksum: str, of its rows.
        lowest: float, its lowest feature, where embed_norm is log or auto.
    """

    def __init__(self, path, *, class_names, verified, img_dim=None, embed_norm=None, grouped=False, keys=True):
        self.path = path
        columns = 2 if verified else 1
        what = f"rows of a feature, its class id{' and its verification label' if verified else ''}"
        array = open_array(path, what, "util/convert_data.py")
        rows, width = array.shape
        if width <= columns:
            raise UserError(f"{path}: shape {array.shape}, expected {what}; make it with util/convert_data.py")
        if img_dim is not None and width != img_dim + columns:
            raise UserError(
                f"{path}: {width} columns, expected {img_dim} + {columns} ({what}); "
                f"give the right --img_dim, or convert with the right --split"
            )
        if rows == 0:
            raise UserError(f"{path}: has no rows; convert a file that has some")
        if keys and not os.path.exists(keys_path(path)):
            load_keys(path, rows)
        self.num_rows, self.img_dim = rows, width - columns
        self.features = FileRows(path, array.offset, array.shape, self.img_dim)
        self.class_ids = np.empty(rows, np.int32)
        self.labels = np.empty(rows, np.int8) if verified else None
        self.lowest, self._crc = np.inf, 0
        for start, block in self._blocks(f"checking {os.path.basename(path)}"):
            self._check(start, block, len(class_names), embed_norm)
        self.checksum = checksums.in_words(self._crc)
        self._check_checksums(class_names)
        self.first = None
        if grouped:
            if np.any(np.diff(self.class_ids) < 0):
                row = int(np.argmax(np.diff(self.class_ids) < 0)) + 1
                raise UserError(
                    f"{path}: row {row} is of class {self.class_ids[row]} after class {self.class_ids[row - 1]}, expected rows "
                    "grouped by class id, ascending; make it with util/convert_data.py --split=all"
                )
            self.first = np.searchsorted(self.class_ids, np.arange(len(class_names) + 1))

    def _blocks(self, text):
        size = max(1, NUMBERS_PER_BLOCK // (self.img_dim + 2))
        with tqdm(total=self.num_rows, desc=text, unit="row", unit_scale=True, disable=None, leave=False, delay=1) as bar:
            for start in range(0, self.num_rows, size):
                block = self.features.whole(slice(start, start + size))
                yield start, block
                bar.update(len(block))

    def _check(self, start, block, num_classes, embed_norm):
        stop, dim = start + len(block), self.img_dim

        def fail(bad, column, expected):
            row = int(np.argmax(bad))
            raise UserError(f"{self.path}: row {start + row} has {block[row, column]} as its {expected}")

        # A sum over a row is finite if its numbers are, and far cheaper to test; too large a sum is looked at closely.
        with np.errstate(over="ignore", invalid="ignore"):
            suspect = ~np.isfinite(block.sum(axis=1))
        if suspect.any() and not np.isfinite(block).all():
            row, column = np.argwhere(~np.isfinite(block))[0]
            raise UserError(
                f"{self.path}: row {start + row} has {block[row, column]} in column {column}, expected finite numbers; convert again"
            )
        ids = block[:, dim]
        bad = (ids < 0) | (ids >= num_classes) | (ids != np.floor(ids))
        if bad.any():
            fail(bad, dim, f"class id, expected a whole number below {num_classes}, the size of the class list")
        self.class_ids[start:stop] = ids
        if self.labels is not None:
            bad = (block[:, dim + 1] != 0) & (block[:, dim + 1] != 1)
            if bad.any():
                fail(bad, dim + 1, "verification label, expected 1 (correct) or 0 (mislabeled)")
            self.labels[start:stop] = block[:, dim + 1]
        if embed_norm in ("log", "auto"):
            self.lowest = min(self.lowest, float(block[:, :dim].min()))
            if embed_norm == "log" and self.lowest <= -1:
                row, column = np.argwhere(block[:, :dim] <= -1)[0]
                raise UserError(f"{self.path}: row {start + row} has {block[row, column]} in column {column}; {LOG_NEEDS}")
        self._crc = zlib.crc32(block.data, self._crc)

    def _check_checksums(self, class_names):
        keys = keys_path(self.path)
        if not os.path.exists(keys) and not os.path.exists(checksums.beside(self.path)):
            return  # an array of the user's own
        found = {os.path.basename(self.path): self.checksum, "classes.txt": checksums.of_class_list(class_names)}
        if os.path.exists(keys):
            found[os.path.basename(keys)] = checksums.of_file(keys)
        checksums.check(self.path, found)

    def identity(self):
        """The array in one line, as a run's settings keep it, by which another array is told apart."""
        return f"{self.num_rows} rows, {self.checksum}"

    def sample_keys(self):
        """The key of every row, list of str."""
        return load_keys(self.path, self.num_rows)
