"""util/lib/tsv.py: the reader against a slow, independent one of a few lines, on generated and mutated files."""
import collections
import re

import numpy as np
import pytest
from conftest import convert
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from util.lib import rows, tsv
from util.lib.errors import UserError

NAMES = ["apple pie", "ramen", "süß"]
ODD_NUMBERS = [
    "-0", "0", "-0.0", "+1", ".5", "5.", "1e5", "1E-5", "-1.5e+3", "007", "1e39", "1e400", "-1e39", "1e-400", "nan", "inf", "-inf",
    "1_0", "٣", " 1", "1 ", "", "[1]",
    "1.00000005960464477", "1.0000000596046448", "1.00000005960464478", "9007199254740993", "0.00012345679104328156",  # near a rounding
    "12345678901234567890", "1e22", "1e-23", "123456789.123456789", "0.000000000000000000001", "5.e2", ".",
    "true", "null", "0x10", "1e", "e5", "--1", "1.2.3", "3.4028235e38", "3.4028236e38", "16777217", "18446744073709551616", "1,", "-",
]


def parsed(line):
    """(key, class id, numbers as float32) of a line, or None for a bad one."""
    try:
        columns = line.decode().split("\t")
        assert "\0" not in line.decode()
        assert "\r" not in line.decode()
        assert len(columns) in (3, 4)
        assert columns[0]
        class_id = NAMES.index(columns[-2])
        texts = columns[-1].split(",")
        assert all(re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", t) for t in texts)
        with np.errstate(over="ignore"):
            values = np.float32([float(t) for t in texts])
        assert np.isfinite(values).all()
        return columns[0], class_id, values
    except (AssertionError, ValueError):
        return None


def slow_reader(data, block_size):
    """Rows of a file, [(line, key, class id, [float32])], and the lines of bad ones.

    The first block with a row that can be parsed sets the width: the most common one of its rows, the first of equals.
    """
    good, bad, width, block_end = [], [], None, block_size
    lines = [line[:-1] if line.endswith(b"\r") else line for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    blocks, start = [[]], 0
    for number, line in enumerate(data.split(b"\n")):
        if start >= block_end:
            blocks.append([])
            block_end = start + block_size
        blocks[-1].append(lines[number])
        start += len(line) + 1
    number = 0
    for block in blocks:
        rows = [parsed(line) for line in block]
        widths = collections.Counter(len(row[2]) for row in rows if row)
        width = width or (widths.most_common(1)[0][0] if widths else None)
        for line, row in zip(block, rows):
            number += 1
            if row and len(row[2]) == width:
                good.append((number, row[0], row[1], row[2].tobytes()))
            elif line:
                bad.append(number)
    return good, bad


@st.composite
def files(draw):
    """A file of good rows, then mutated: bytes, columns, digits, odd numbers."""
    width = draw(st.one_of(st.integers(1, 4), st.integers(20, 40)))  # the compiled parser takes 64 bytes at a time
    plain = st.floats(0, 10).flatmap(lambda x: st.sampled_from([repr(x), f"{x:.6g}", f"{-x:.3f}", f"{x:.8f}"]))
    number = st.one_of(
        plain, st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr), st.sampled_from(["0", "1.5", "-2", "12.25"])
    )
    lines = []
    for i in range(draw(st.integers(1, 6))):
        values = draw(st.lists(number, min_size=width, max_size=width))
        if draw(st.integers(0, 3)) == 0:
            values[draw(st.integers(0, width - 1))] = draw(st.sampled_from(ODD_NUMBERS))
        columns = [f"k{i}", *(["url"] if draw(st.booleans()) else []), draw(st.sampled_from(NAMES)), ",".join(values)]
        if draw(st.integers(0, 9)) == 0:
            columns.insert(draw(st.integers(0, len(columns))), draw(st.sampled_from(["", "x", "ramen"])))
        if draw(st.integers(0, 9)) == 0:
            columns = draw(st.permutations(columns))
        lines.append("\t".join(columns) + draw(st.sampled_from(["\n", "\n", "\r\n", "\n\n", "\r\n\n"])))
    data = bytearray(draw(st.sampled_from(["", "", "\ufeff"])).encode() + "".join(lines).encode())
    for _ in range(draw(st.integers(0, 3))):
        index = draw(st.integers(0, len(data)))
        kind = draw(st.integers(0, 2))  # insert, replace, delete
        byte = draw(st.one_of(st.integers(0, 255), st.sampled_from(b"\t\n\r,.-0 [")))
        data[index : index + (kind > 0)] = b"" if kind == 2 else bytes([byte])
    return bytes(data[: len(data) - draw(st.integers(0, 2))])


def read(path, block_size, **options):
    """Rows of a file as slow_reader has them, by the suite's reader. options: of rows.RowReader."""
    source = tsv.TextRows(str(path), tsv.Parser(tsv.UNVERIFIED, NAMES), num_workers=1, block_size=block_size)
    reader = rows.RowReader(source, **options)
    good, bad = [], []
    for block in reader:
        for line, key, class_id, feature in zip(block.lines, block.keys, block.class_ids, block.features):
            good.append((line, key, class_id, feature.tobytes()))
        bad += [row.line for row in block.rejected]
    return good, bad


def check(path, data, block_size, compiled):
    """Compares both readers on a file, read in blocks of block_size bytes, by the compiled parser or without it."""
    path.write_bytes(data)
    good, bad = slow_reader(data, block_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tsv, "BLOCK", block_size)
        patch.setattr(tsv, "SMALL", -1 if compiled else 1 << 20)
        try:
            found = read(path, block_size=block_size, on_bad_row="skip", rejected_path=f"{path}.rejected.tsv")
        except UserError as error:
            assert len(bad) > len(good) or not good
            assert ("too many to skip" in str(error)) == bool(good)
            assert good or "has no rows" in str(error) or "none of the" in str(error)
            return
        assert found == (good, bad)
        assert len(bad) <= len(good)
        if bad:
            rejected = (path.parent / f"{path.name}.rejected.tsv").read_bytes()
            assert rejected.count(b"\n") >= len(bad)
            with pytest.raises(UserError, match=f":{bad[0]}: "):
                read(path, block_size=block_size)
        else:
            assert read(path, block_size=block_size) == (good, [])


COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True, "database": None}


@pytest.mark.check
@settings(max_examples=400, **COMMON)
@given(data=files(), block_size=st.integers(1, 200), compiled=st.booleans())
def test_reader_equals_a_slow_one(tmp_path_factory, data, block_size, compiled):
    check(tmp_path_factory.getbasetemp() / "fuzz.tsv", data, block_size, compiled)


@pytest.mark.slow
@settings(max_examples=5000, **COMMON)
@given(data=files(), block_size=st.integers(1, 200), compiled=st.booleans())
def test_reader_equals_a_slow_one_on_thousands(tmp_path_factory, data, block_size, compiled):
    check(tmp_path_factory.getbasetemp() / "fuzz_slow.tsv", data, block_size, compiled)


@settings(max_examples=20, **COMMON)
@given(data=files())
def test_the_command_agrees(tmp_path_factory, data):
    """A sample through the real command: the same rows, or one line of error."""
    folder = tmp_path_factory.mktemp("command")
    (folder / "classes.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    (folder / "rows.tsv").write_bytes(data)
    good, bad = slow_reader(data, 1 << 20)
    done = convert("all", folder / "out", folder / "rows.tsv", folder / "classes.txt", check=False)
    assert "Traceback" not in done.stderr
    assert (done.returncode == 0) == (not bad and bool(good))
    if done.returncode:
        assert not (folder / "out" / "all.npy").exists()
        assert len([line for line in done.stderr.splitlines() if "error: " in line]) == 1
    else:
        expected = [feature for _, _, class_id, feature in sorted(good, key=lambda row: row[2])]
        assert [row[:-1].tobytes() for row in np.load(folder / "out" / "all.npy")] == expected
