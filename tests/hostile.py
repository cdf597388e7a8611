"""Makes hostile cases from the commands themselves: from their flags, and from the files that good calls of them read.

A case is a good call with one thing wrong: a flag, a file or the environment. Flags and files that a command gets later
are covered without a change here. test_hostile.py has the good calls and runs the cases.
"""
import ast
import gzip
import io
import itertools
import json
import os
import random
import shutil
import stat
from typing import NamedTuple

import numpy as np
from commands import ROOT


class Good(NamedTuple):
    """A call that ends well in a copy of the world, a folder of small files. Everything that it writes goes below out/.

    flags: {name: value}. copies: {name: folder of the world to copy there first}. heavy: it takes seconds.
    """

    name: str
    script: str
    flags: dict
    copies: dict = {}  # noqa: RUF012 - never changed
    heavy: bool = False


class Case(NamedTuple):
    """A good call with one thing wrong.

    name: what is wrong. flags: those that differ from the good call's; None leaves one out. change: function of the
    folder, before the call. same: ending well without a warning, it has the good call's output. env: variables that
    differ. close: the standard stream, 1 or 2, that is closed. fresh: in a new interpreter. long: may rightly be long.
    refused: it may not end well.
    """

    name: str
    good: Good
    flags: dict = {}  # noqa: RUF012
    change: object = None
    same: bool = False
    env: dict = {}  # noqa: RUF012
    close: int | None = None
    fresh: bool = False
    long: bool = False
    refused: bool = False

    def arguments(self):
        """The command line after the script."""
        return [f"--{name}={value}" for name, value in {**self.good.flags, **self.flags}.items() if value is not None]


def flags_of(script):
    """The flags that a command defines, {name: (whether it is a number, values just out of range)}."""
    found, steps = {}, {"lower_bound": -1, "upper_bound": 1}
    for node in ast.walk(ast.parse((ROOT / script).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("flags.DEFINE_"):
            outside = [eval(ast.unparse(k.value)) + steps[k.arg] for k in node.keywords if k.arg in steps]
            default = getattr(node.args[1], "value", None)  # a text of a number is a number too
            of_numbers = str(default)[:1].isdigit() and str(default).count(".") < 3  # but no address
            is_number = node.func.attr in ("DEFINE_integer", "DEFINE_float") or of_numbers
            found[node.args[0].value] = is_number, outside
    return found


ODD = {  # wrong in most places
    "empty": "", "word": "x", "nan": "nan", "inf": "inf", "-inf": "-inf", "1e400": "1e400", "1e38": "1e38", "-1": "-1",
    "-2": "-2", "half": "0.5", "2**63": str(2**63), "10**18": str(10**18), "5,000 digits": "9" * 5000, "blank": " ",
    "underscore": "1_0", "Arabic digit": "٣", "superscript": "²", "escape": "\x1b[31mred", "long": "x" * 250,
    "Latin-1": os.fsdecode(b"caf\xe9"), "quote": '"', "comma": ",", "nested": "[[1]]", "null": "null", "newline": "a\n",
}
IN_CELLS = ODD | {
    "return": "a\rb", "NUL": "a\0b", "BOMs": "\ufeff\ufeffa", "upper": "CORRECT", "1e30": "1e30", "1e-30": "1e-30",
}
IN_NUMBERS = [name for name in ODD if name not in ("long", "newline", "quote", "null")]
IN_WORDS = [name for name in ODD if name not in ("-inf", "1e400", "1e38", "-2", "half", "10**18", "underscore")]
NO_NUMBERS = ("word", "nan", "inf", "-inf", "1e400", "underscore", "Arabic digit", "superscript", "comma", "nested")
LONG_WORK = ("n_step", "train_flags", "num_ref", "n_epoch", "folds")  # a large value may rightly take long


def is_output(value):
    """Whether the value of a flag names something that is written."""
    return str(value).startswith("out")


def inputs(good, world):
    """What the flags of a good call name that is read, [(flag, path)]."""
    pairs = [(name, part) for name, value in good.flags.items() for part in str(value).split(",")]
    return [(name, path) for name, path in pairs if not is_output(path) and (world / path).exists()]


def files_read(good, world):
    """Names of the files that a good call may read: those that it is given, and those in folders that it is given."""
    roots = [world / path for path in [*dict(inputs(good, world)).values(), *good.copies.values()]]
    files = [path for root in roots for path in [root, *sorted(root.rglob("*"))] if path.is_file()]
    return [str(path.relative_to(world)) for path in files]


def writes(name, content):
    """A change of the folder: a file gets a content, bytes or a function that makes them."""
    return lambda folder: (folder / name).write_bytes(content() if callable(content) else content)


def flag_cases(good, world):
    """Cases with a wrong value of each flag of the command."""
    read = dict(inputs(good, world))
    for name, (is_number, outside) in flags_of(good.script).items():
        value = good.flags.get(name)
        if name in read or (value and is_output(value)):
            yield from path_cases(good, name, read.get(name, value))
        for label in IN_NUMBERS if is_number else IN_WORDS:
            no_number = is_number and label in NO_NUMBERS
            yield Case(f"--{name} is {label}", good, {name: ODD[label]}, long=name in LONG_WORK, refused=no_number)
        for number in outside:
            yield Case(f"--{name} is out of range", good, {name: number}, refused=True)
        if name in good.flags:
            yield Case(f"--{name} is missing", good, {name: None}, long=True)  # its default may ask for more work
        if not is_number:
            nul = writes("f.flags", f"--{name}=a\0b\n".encode())
            yield Case(f"--{name} is a text with a NUL", good, {name: None, "flagfile": "f.flags"}, nul)
    for label, content in {"Latin-1": b"--\xe9=1\n", "empty": b"", "itself": b"--flagfile=f.flags\n"}.items():
        yield Case(f"--flagfile is {label}", good, {"flagfile": "f.flags"}, writes("f.flags", content))


CONTENTS = {  # what a file may be instead of the right one
    "an empty file": b"", "an npz": b"PK\3\4" + bytes(99), "a PNG": b"\x89PNG\r\n\x1a\n" + bytes(9), "JSON": b"[1]",
    "an npy": b"\x93NUMPY\1\0" + bytes(200), "gzip": gzip.compress(b"x\n" * 99), "deep JSON": b"[" * 200_000,
    "Latin-1 text": b"caf\xe9\t1\n", "one long line": b"k\tx\t" + b"1," * 2_000_000,
}
KINDS = {  # what may lie where a file is expected: {label: function of its path that makes it}
    "a folder": os.mkdir, "a FIFO": os.mkfifo, "a socket": lambda path: os.mknod(path, 0o600 | stat.S_IFSOCK),
    "stdout": lambda path: path.symlink_to("/proc/self/fd/1"), "a loop": lambda path: path.symlink_to(path.name),
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    **{label: lambda path, content=content: path.write_bytes(content) for label, content in CONTENTS.items()},
}
if not os.geteuid():  # a device of its own: the user root could lose the one in /dev
    KINDS["a device"] = lambda path: os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))


def path_cases(good, name, value):
    """Cases in which a flag names something else than a file, another kind of file, or an odd name."""
    suffix, out = os.path.splitext(value)[1], "out/" if is_output(value) else ""
    for label, make in KINDS.items():
        other = f"{out}other{suffix}"
        yield Case(f"--{name} is {label}", good, {name: other}, lambda folder, o=other, make=make: make(folder / o))
    others = {"below a file": f"classes.txt/x{suffix}", "another suffix": f"{value}.csv"}
    others |= {} if out else {"missing": f"none/none{suffix}", "this folder": "."}
    for label, other in others.items():
        yield Case(f"--{name} is {label}", good, {name: other})
    for label in ("long", "Latin-1", "escape", "newline"):
        other = out + ODD[label][: 250 - len(suffix)] + suffix

        def copy(folder, other=other):
            if not out and (folder / value).is_file():
                shutil.copy(folder / value, folder / other)

        yield Case(f"--{name} is a {label} name", good, {name: other}, copy)


def same_file_cases(good, world, outputs):
    """Cases in which an output is an input or another output. outputs: names of the files that the good call writes."""
    written = [name for name, value in good.flags.items() if is_output(value) and os.path.splitext(value)[1]]
    for path in files_read(good, world):
        for flag, other in itertools.product(written, (path, f"./out/../{path}")):
            yield Case(f"--{flag} is an input: {other}", good, {flag: other}, refused=True)
    for name, path in [(name, path) for name, path in inputs(good, world) if (world / path).is_file()]:
        for output, link in itertools.product(outputs, (os.symlink, os.link)):
            def change(folder, path=path, output=output, link=link):
                (folder / output).parent.mkdir(parents=True, exist_ok=True)
                (folder / output).unlink(missing_ok=True)
                link((folder / path).absolute(), folder / output)

            yield Case(f"{output} is a {link.__name__} of --{name}", good, {}, change)
        for output in (output for output in outputs if os.path.basename(output) != os.path.basename(path)):
            moved = writes(output, (world / path).read_bytes())
            yield Case(f"--{name} is the output {output}", good, {name: output}, moved, refused=True)
    for flag, other in itertools.pairwise(written):
        yield Case(f"--{flag} is --{other}", good, {flag: good.flags[other]}, refused=True)


def csv_mutations(data):
    """Wrong versions of CSV whose features have blanks between their numbers, as text_mutations has them."""
    return text_mutations(data, b",", b" ")


def text_mutations(data, tab=b"\t", comma=b","):
    """Wrong versions of a file of lines and columns, {label: bytes or a function that makes them}.

    Args:
        tab, comma: what is between the columns, and between the numbers of a feature.
    """
    lines, found = data.splitlines(), {}
    rows = [line.split(tab) for line in lines]
    number = min(1, len(rows) - 1)
    row = rows[number]

    def with_row(changed):
        return b"\n".join([*lines[:number], tab.join(changed), *lines[number + 1 :]]) + b"\n"

    for c, cell in enumerate(row):
        before, after, values = row[:c], row[c + 1 :], cell.split(comma)
        for label, text in IN_CELLS.items():
            odd = comma.join([os.fsencode(text), *values[1:]])
            found[f"column {c + 1} is {label}"] = with_row([*before, odd, *after])
        found[f"column {c + 1} is left out"] = with_row(before + after)
        found[f"column {c + 1} is there twice"] = with_row([*before, cell, cell, *after])
        moved = [tab.join([*r[:c], *r[c + 1 :], *r[c : c + 1]]) + b"\n" for r in rows]
        found[f"column {c + 1} is the last"] = b"".join(moved)
        if len(values) > 1:
            found[f"column {c + 1} is of 3,000,000 numbers"] = lambda: (b"1" + comma) * 3_000_000 + b"1\n" + data
            narrow = tab.join([*before, comma.join(values[1:]), *after]) + b"\n"
            found[f"column {c + 1} is narrower in row 1"] = narrow + data
            for scale in (1e30, 1e-30):
                found[f"column {c + 1} is times {scale:g}"] = b"".join(_scaled(r, c, scale, tab, comma) for r in rows)
    header = tab.join([b"class"] * len(row)) + b"\n"
    return found | binary_mutations(data) | {
        "blank lines": b"\n\n", "header": header + data, "BOMs": b"\xef\xbb\xbf" * 2 + data, "one line": lines[0],
        "CRLF": data.replace(b"\n", b"\r\n"), "commas": data.replace(tab, b"," if tab != b"," else b";"), "gzip": gzip.compress(data),
        "lines swapped": b"\n".join([lines[-1], *lines[1:-1], lines[0]]) + b"\n", "row twice": lines[0] + b"\n" + data,
        "last line missing": b"\n".join(lines[:-1]) + b"\n", "UTF-16": data.decode("latin-1").encode("utf-16"),
    }


def _scaled(row, column, scale, tab, comma):
    """A row with the numbers of a column times a scale; words stay."""
    def scaled(text):
        try:
            return f"{float(text) * scale:g}".encode()
        except ValueError:
            return text

    values = row[column].split(comma) if len(row) > column else []
    return tab.join([*row[:column], comma.join(map(scaled, values)), *row[column + 1 :]]) + b"\n"


def saved(array):
    """An array as the bytes of a .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


DESCRS = ("<f4", "", "|O", "<f8", "<f2", "<i4", "<U9", [], [[]], [("a", "<f4")], {"a": 1}, None, "<f4," * 9)


def npy_mutations(data):
    """Wrong versions of a .npy file, {label: bytes}."""
    array, found = np.load(io.BytesIO(data)), binary_mutations(data) | {"version 9": data[:6] + b"\x09" + data[7:]}
    some = array.shape[1:]
    shapes = (array.shape, some, (0, *some), (10**12, *some), (-1, 2), (2**63, 2**63), (1.5, 2), ())
    for descr, shape in [*((descr, array.shape) for descr in DESCRS), *(("<f4", shape) for shape in shapes)]:
        header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
        start = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little")
        found[f"header {descr!r} {shape}"] = start + header + array.tobytes()
    found["deep header"] = b"\x93NUMPY\2\0" + (300_000).to_bytes(4, "little") + b"(" * 300_000
    for value, place in itertools.product((np.nan, np.inf, 1e30, 1e-30, -1, -2, 0.5, 1e9), (0, -1)):
        changed = array.copy()
        changed[(place,) * array.ndim] = value
        found[f"{value:g} at place {place}"] = saved(changed)
    for scale in (1e30, 1e-30, 0) if array.ndim > 1 else ():
        scaled = array[..., :-2] * np.float32(scale)
        found[f"times {scale:g}"] = saved(np.concatenate([scaled, array[..., -2:]], axis=-1))
    other = {"reversed": array[::-1], "transposed": array.T, "one row": array[:1], "float64": array.astype(float)}
    other |= {"row twice": np.concatenate([array[:1], array]), "objects": np.array([{}], object)}
    return found | {label: saved(changed) for label, changed in other.items()}


WRONG_JSON = {  # texts: not all are JSON
    "null": "null", "a text": '"x"', "an empty text": '""', "-1": "-1", "0": "0", "half": "0.5", "1e30": "1e30",
    "1e-30": "1e-30", "NaN": "NaN", "Infinity": "-Infinity", "a list": "[]", "an object": "{}", "nested": "[[1]]",
    "true": "true", "5,000 digits": "9" * 5000, "2**63": str(2**63), "deep": "[" * 200_000,
    "an escape": '"\\u001b[31m"', "a lone surrogate": '"\\ud800"', "there twice": '1, "%s": 2',
}


def json_paths(value, path=()):
    """The paths of all parts of a JSON value; of a list, its first item."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, part in parts:
        yield from json_paths(part, (*path, key))


def json_mutations(data):
    """Wrong versions of a JSON file, or of the first line of a .jsonl file, as text_mutations returns them."""
    first, rest = (data, b"") if data[:2] in (b"{\n", b"[\n") else data.split(b"\n", 1)
    value, found = json.loads(first), binary_mutations(data) | {"all twice": data + data}
    for path in json_paths(value):
        name, wrong = ".".join(map(str, path)) or "all", list(WRONG_JSON.items())
        for label, text in wrong if len(path) < 2 else random.Random(name).sample(wrong, 3):  # deep parts are many
            found[f"{name} is {label}"] = lambda path=path, text=text: _replaced(value, path, text) + rest
        if path:
            found[f"{name} is left out"] = lambda path=path: _replaced(value, path, None) + rest
    return found


def _replaced(value, path, text):
    """A JSON value with a text for the part at a path, or without that part, as bytes."""
    holder = [json.loads(json.dumps(value))]
    part = holder
    for key in (0, *path)[:-1]:
        part = part[key]
    if text is None:
        del part[path[-1]]
        return json.dumps(holder[0]).encode() + b"\n"
    part[(0, *path)[-1]] = "the hole"
    return json.dumps(holder[0]).replace('"the hole"', text.replace("%s", str((0, *path)[-1]))).encode() + b"\n"


def parquet_mutations(data):
    """Wrong versions of a table, {label: bytes}."""
    import pyarrow
    from pyarrow import parquet

    table = parquet.read_table(io.BytesIO(data))
    found = {"no rows": table[:0], "rows twice": pyarrow.concat_tables([table, table])}
    if "feature" in table.column_names:
        features, at = table["feature"].to_pylist(), table.column_names.index("feature")
        odd = {"nan": np.nan, "null": None, "-2": -2, "1e39": 1e39, "1e30": 1e30}
        lists = {f"{label} in a feature": [[x, *features[0][1:]], *features[1:]] for label, x in odd.items()}
        lists |= {"ragged": [features[0][1:], *features[1:]], "empty lists": [[]] * len(features)}
        found |= {label: table.set_column(at, "feature", pyarrow.array(rows)) for label, rows in lists.items()}
    for i, name in enumerate(table.column_names):
        for value in (1, "x", [1], np.inf, b"\xe9", True, None):
            found[f"{name} is {value!r}"] = table.set_column(i, name, pyarrow.array([value] * len(table)))
        some = pyarrow.array([None, *table.column(i).to_pylist()[1:]], table.schema.field(i).type)
        found[f"{name} is null once"] = table.set_column(i, name, some)
        found[f"{name} is left out"] = table.remove_column(i)
        found[f"{name} is there twice"] = table.append_column(name, table.column(i))
    for label, changed in found.items():
        parquet.write_table(changed, file := io.BytesIO())
        found[label] = file.getvalue()
    return binary_mutations(data) | found


def binary_mutations(data):
    """Wrong versions of any file, {label: bytes}."""
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 16
    half = data[: len(data) // 2]
    return {"empty": b"", "cut off": half, "zeros": bytes(300), "a bit flipped": bytes(flipped), "more": data + b"\xe9"}


MUTATIONS = {
    ".tsv": text_mutations, ".txt": text_mutations, ".json": json_mutations, ".jsonl": json_mutations,
    ".npy": npy_mutations, ".parquet": parquet_mutations, ".csv": csv_mutations,
}


def file_cases(good, world):
    """Cases with a wrong version of each file that a good call reads."""
    for name in files_read(good, world):
        mutations = MUTATIONS.get(os.path.splitext(name)[1], binary_mutations)((world / name).read_bytes())
        same = name.startswith("run/") and good.script != "train.py"  # a run is ours: a change is found, or harmless
        place = next((to + name[len(of) :] for to, of in good.copies.items() if name.startswith(of)), name)
        for label, content in mutations.items():
            yield Case(f"{name}: {label}", good, change=writes(place, content), same=same)
        yield Case(f"{name}: missing", good, change=lambda folder, place=place: (folder / place).unlink(), same=same)
    for model in sorted(path.name for path in world.glob("odd_*.keras")) if "keras_model" in good.flags else ():
        yield Case(f"--keras_model is {model}", good, {"keras_model": model}, refused="any_size" not in model)


ENVIRONMENTS = {
    "PYTHONIOENCODING": {"PYTHONIOENCODING": "ascii"}, "KERAS_BACKEND": {"KERAS_BACKEND": "torch"},
    "LC_ALL": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "keras.json": {"KERAS_HOME": "keras_home"}, "PYTHONSAFEPATH": {"PYTHONSAFEPATH": "1"},
}


def cases(goods, world, outputs):
    """Every case of some good calls. world: a folder. outputs: {name of a call: names of the files that it writes}."""
    for good in goods:
        yield from flag_cases(good, world)
        yield from same_file_cases(good, world, outputs.get(good.name, ()))
        yield from file_cases(good, world)
        for label, env in ENVIRONMENTS.items():
            yield Case(f"environment: {label}", good, env=env, same=True, fresh=True)
        for stream in (1, 2):
            yield Case(f"environment: descriptor {stream} is closed", good, close=stream, same=True, fresh=True)
