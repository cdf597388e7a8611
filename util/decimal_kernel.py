"""A compiled parser of plain decimal numbers: what most of a million rows of text is. Imported when a file is large enough to gain by it.

A number is w * 10^e with whole w. With w up to 2^53 and |e| up to 22 both factors are exact as float64, so one multiplication or
division rounds once, and the result is the float64 nearest to the text: Clinger, "How to read floating point numbers accurately"
(1990). With more digits it is a few roundings off, which is told apart where it could change the float32. Anything else is left to the
exact reader. The kernel holds no GIL, so threads parse side by side.

Commas are found 64 bytes at a time, so that one number need not wait for the end of the one before it; most numbers then are d.dddd,
whose digits behind the point are taken together.
"""
import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

_POWERS = 10.0 ** np.arange(23)  # exact
_EXACT = np.uint64(1 << 53)
_OFF = 1e-15  # a bound of the relative error of two roundings to float64, twice over

# Eight bytes in one integer, the first one lowest. _LAST[n] keeps the last n of them.
_LAST = np.array([0] + [((1 << 64) - 1) << 64 - 8 * n & (1 << 64) - 1 for n in range(1, 9)], np.uint64)
_DIGIT_ZEROS = np.uint64(0x3030303030303030)
_TO_HIGH_BIT = np.uint64(0x7676767676767676)  # takes 10 and above to 128 and above
_HIGH_BITS = np.uint64(0x8080808080808080)
_PAIRS, _FOURS, _EIGHT = (np.uint64(x) for x in (0x00FF00FF00FF00FF, 0x0000FFFF0000FFFF, 0x00000000FFFFFFFF))

# uint64 throughout: numba takes signed places from the end if they are negative, which costs a step each, and mixes the two to floats.
_U1, _U2, _U8, _U10, _U16, _U32, _U64, _U100, _U10000 = (np.uint64(x) for x in (1, 2, 8, 10, 16, 32, 64, 100, 10000))


def _loaded(context, builder, text_type, text, place, what):
    """Code that loads a `what` from text[place:]."""
    data = context.make_array(text_type)(context, builder, text).data
    return builder.load(builder.bitcast(builder.gep(data, [place]), what.as_pointer()), align=1)


@intrinsic
def _eight_bytes(_, text, place):
    def generate(context, builder, signature, arguments):
        return _loaded(context, builder, signature.args[0], *arguments, ir.IntType(64))

    return numba.uint64(text, place), generate


@intrinsic
def _commas(_, text, place):
    """A bit for each of text[place : place + 64]: is it a comma?"""

    def generate(context, builder, signature, arguments):
        bytes_64 = ir.VectorType(ir.IntType(8), 64)
        found = _loaded(context, builder, signature.args[0], *arguments, bytes_64)
        return builder.bitcast(builder.icmp_unsigned("==", found, ir.Constant(bytes_64, [ord(",")] * 64)), ir.IntType(64))

    return numba.uint64(text, place), generate


@intrinsic
def _trailing_zeros(_, bits):
    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return numba.uint64(bits), generate


@numba.njit(nogil=True)
def _any_number(text, i, end):
    """The value of text[i:end], and whether it is a plain number."""
    negative = i < end and text[i] == 45
    if i < end and (negative or text[i] == 43):  # - +
        i += _U1
    w, digits, exponent, written, point = np.uint64(0), 0, 0, False, False
    while i < end:
        digit = np.uint8(text[i] - 48)
        if digit <= 9:
            w = w * _U10 + np.uint64(digit)
            digits += digits > 0 or digit > 0  # leading zeros do not count
            exponent -= point
            written = True
        elif digit == 254 and not point:  # .
            point = True
        else:
            break
        i += _U1
    if not written or digits > 19:  # nothing, or more than a uint64 is sure to hold
        return 0.0, False
    if i < end and text[i] | 32 == 101:  # e E
        i += _U1
        down = i < end and text[i] == 45
        if i < end and (down or text[i] == 43):
            i += _U1
        power, first = 0, i
        while i < end and np.uint8(text[i] - 48) <= 9 and power < 1000:
            power = power * 10 + np.int64(text[i] - 48)
            i += _U1
        if i == first:
            return 0.0, False
        exponent += -power if down else power
    if i != end or exponent > 18 or exponent < -22:  # 18: far from the largest float32
        return 0.0, False
    value = np.float64(w)
    value = value / _POWERS[-exponent] if exponent < 0 else value * _POWERS[exponent]
    if w > _EXACT and np.float32(value * (1 - _OFF)) != np.float32(value * (1 + _OFF)):
        return 0.0, False
    return -value if negative else value, True


# No cache on disk: numba's is a pickle, and compiling takes about a second.
@numba.njit(
    numba.void(
        numba.types.Array(numba.uint8, 1, "C", readonly=True), numba.uint64[::1], numba.uint64[::1], numba.float32[:, ::1], numba.bool_[::1]
    ),
    nogil=True,
)
def _parse_rows(text, starts, stops, out, plain):
    size = np.uint64(len(text))
    final = size - _U1  # no read goes beyond, whatever the row
    for row in range(len(starts)):
        place, start, stop, count, good = starts[row], starts[row], stops[row], 0, True
        while place <= stop and good:
            if place + _U64 <= size:
                ends = _commas(text, place)
            else:
                ends = np.uint64(0)
                for i in range(place, stop):
                    ends |= np.uint64(text[i] == 44) << np.uint64(i - place)
            if stop - place < _U64:  # the row ends here, as the last number does
                last = _U1 << (stop - place)
                ends = ends & (last - _U1) | last
            while ends and good:
                end = place + _trailing_zeros(ends)
                ends &= ends - _U1
                negative = text[min(start, final)] == 45
                first = start + np.uint64(negative)
                length = end - first
                digit = np.uint8(text[min(first, final)] - 48)
                # d or d.dddd, with up to eight digits behind the point
                pointed = (length == _U1) | (text[min(first + _U1, final)] == 46)
                good = (length - _U1 < _U10) & (digit <= 9) & pointed & (end >= _U8)
                value = 0.0
                if good:
                    behind = max(length, _U2) - _U2
                    x = (_eight_bytes(text, end - _U8) ^ _DIGIT_ZEROS) & _LAST[behind]
                    good = ((x + _TO_HIGH_BIT) | x) & _HIGH_BITS == 0
                    x = (x * _U10 + (x >> _U8)) & _PAIRS  # two digits in each 16 bits
                    x = (x * _U100 + (x >> _U16)) & _FOURS
                    x = (x * _U10000 + (x >> _U32)) & _EIGHT
                    value = (np.float64(digit) * _POWERS[behind] + np.float64(np.int64(x))) / _POWERS[behind]
                    value = -value if negative else value
                if not good:
                    value, good = _any_number(text, start, end)
                good &= count < out.shape[1]
                if good:
                    out[row, count] = np.float32(value)
                count += 1
                start = end + _U1
            place += _U64
        plain[row] = good and count == out.shape[1]


def parse_rows(text, starts, stops, out):
    """Parses text[starts[i] : stops[i]], comma-separated numbers, into out[i].

    Args:
        text: uint8 [n], read-only, as np.frombuffer(bytes) is. starts, stops: uint64 [N]. out: float32 [N, D].

    Returns:
        bool [N]: True where there were D plain numbers. Elsewhere out[i] holds anything, and the exact reader must look.
    """
    plain = np.zeros(len(starts), np.bool_)
    _parse_rows(text, starts, stops, out, plain)
    return plain
