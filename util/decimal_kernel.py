"""A compiled parser of plain decimal numbers: what most of a million rows of text is. Imported when a file is large enough to gain by it.

A number is w * 10^e with whole w. With w up to 2^53 and |e| up to 22 both factors are exact as float64, so one multiplication or
division rounds once, and the result is the float64 nearest to the text: Clinger, "How to read floating point numbers accurately"
(1990). Anything else is left to the exact reader. The kernel holds no GIL, so threads parse side by side.
"""
import numba
import numpy as np

_POWERS = 10.0 ** np.arange(23)  # exact
_MOST = 1 << 53


_BYTES = numba.types.Array(numba.uint8, 1, "C", readonly=True)


# No cache on disk: numba's is a pickle, and compiling takes less than a second.
@numba.njit(numba.int64(_BYTES, numba.int64, numba.int64, numba.float32[::1], numba.float64[::1]), nogil=True)
def _parse_row(text, start, end, out, powers):
    count, i = 0, start
    while True:
        negative = False
        if i < end and (text[i] == 45 or text[i] == 43):  # - +
            negative = text[i] == 45
            i += 1
        w, first = np.uint64(0), i
        while i < end and np.uint8(text[i] - 48) <= 9:
            w = w * np.uint64(10) + np.uint64(text[i] - 48)
            i += 1
        digits, exponent = i - first, 0
        if i < end and text[i] == 46:  # .
            i += 1
            first = i
            while i < end and np.uint8(text[i] - 48) <= 9:
                w = w * np.uint64(10) + np.uint64(text[i] - 48)
                i += 1
            exponent = first - i
            digits += i - first
        if digits == 0 or digits > 18:  # nothing, or more than a uint64 is sure to hold
            return -1
        if i < end and (text[i] == 101 or text[i] == 69):  # e E
            i += 1
            down = False
            if i < end and (text[i] == 45 or text[i] == 43):
                down = text[i] == 45
                i += 1
            written, first = 0, i
            while i < end and np.uint8(text[i] - 48) <= 9 and written < 1000:
                written = written * 10 + np.int64(text[i] - 48)
                i += 1
            if i == first:
                return -1
            exponent += -written if down else written
        if w > np.uint64(_MOST) or exponent > 22 or exponent < -22 or count == len(out):
            return -1
        value = np.float64(w)
        value = value / powers[-exponent] if exponent < 0 else value * powers[exponent]
        out[count] = np.float32(-value if negative else value)
        count += 1
        if i == end:
            return count
        if text[i] != 44:  # ,
            return -1
        i += 1


@numba.njit(numba.void(_BYTES, numba.int64[::1], numba.int64[::1], numba.float32[:, ::1], numba.bool_[::1], numba.float64[::1]), nogil=True)
def _parse_rows(text, starts, stops, out, plain, powers):
    for i in range(len(starts)):
        plain[i] = _parse_row(text, starts[i], stops[i], out[i], powers) == out.shape[1]


def parse_rows(text, starts, stops, out):
    """Parses text[starts[i] : stops[i]], comma-separated numbers, into out[i].

    Args:
        text: uint8 [n], read-only, as np.frombuffer(bytes) is. starts, stops: int64 [N]. out: float32 [N, D].

    Returns:
        bool [N]: True where there were D plain numbers. Elsewhere out[i] holds anything, and the exact reader must look.
    """
    plain = np.zeros(len(starts), np.bool_)
    _parse_rows(text, starts, stops, out, plain, _POWERS)
    return plain
