"""A compiled parser of plain decimal numbers: what most of a million rows of text is. Imported when a file is large enough to gain by it.

A number is w * 10^e with whole w. With w up to 2^53 and |e| up to 22 both factors are exact as float64, so one multiplication or
division rounds once, and the result is the float64 nearest to the text: Clinger, "How to read floating point numbers accurately"
(1990). With more digits it is a few roundings off, which is told apart where it could change the float32. Anything else is left to the
exact reader. The kernel holds no GIL, so threads parse side by side.

The numbers of a row are told apart first, 64 bytes at a time. Most of them are d or d.dddd, and these are worked out all alike, without a
branch, so that the compiler does several in one instruction; the others one by one.
"""
import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

_POWERS = 10.0 ** np.arange(23)  # exact
_TEN_TO_8 = np.uint64(10**8)
_EXACT = np.uint64(1 << 53)
_OFF = 1e-15  # a bound of the relative error of two roundings to float64, twice over

# uint64 throughout: numba takes signed places from the end if they are negative, which costs a step each, and mixes the two to floats.
_U0, _U1, _U2, _U4, _U8, _U9, _U10, _U16, _U32, _U63, _U64, _U100, _U10000 = (
    np.uint64(x) for x in (0, 1, 2, 4, 8, 9, 10, 16, 32, 63, 64, 100, 10000)
)
_BYTE, _MINUS, _POINT, _ZERO = (np.uint64(x) for x in (0xFF, ord("-"), ord("."), ord("0")))

# Eight bytes in one integer, the first one lowest.
_DIGIT_ZEROS = np.uint64(0x3030303030303030)
_TO_HIGH_BIT = np.uint64(0x7676767676767676)  # takes 10 and above to 128 and above
_HIGH_BITS = np.uint64(0x8080808080808080)
_PAIRS, _FOURS, _EIGHT = (np.uint64(x) for x in (0x00FF00FF00FF00FF, 0x0000FFFF0000FFFF, 0x00000000FFFFFFFF))


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


@numba.njit(nogil=True)
def _find_numbers(text, start, stop, ends, heads, tails, lengths):
    """Finds the numbers of text[start:stop]: their ends, first and last eight bytes, and lengths.

    Returns how many there are, or one more than are wanted. The arrays hold 64 more than that.
    """
    size, wanted, count, place = np.uint64(len(text)), np.uint64(len(ends)) - _U64, _U0, start
    while place <= stop and count <= wanted:
        if place + _U64 <= size:
            found = _commas(text, place)
        else:
            found = _U0
            for i in range(place, stop):
                found |= np.uint64(text[i] == 44) << np.uint64(i - place)
        if stop - place < _U64:  # the row ends here, as the last number does
            last = _U1 << (stop - place)
            found = found & (last - _U1) | last
        while found:
            end = place + _trailing_zeros(found)
            found &= found - _U1
            ends[count], lengths[count] = end, end - start
            # Where eight bytes would reach out of the text, nothing that could be a number.
            heads[count] = _eight_bytes(text, start) if start + _U8 <= size else _U0
            tails[count] = _eight_bytes(text, end - _U8) if end >= _U8 else _U0
            start = end + _U1
            count += _U1
        place += _U64
    return count if count <= wanted else wanted + _U1


@numba.njit(nogil=True, error_model="numpy")
def _pointed_numbers(heads, tails, lengths, out, known):
    """Puts the value of each number d or d.dddd, with up to eight digits behind the point and perhaps a minus, into out.

    heads: its first bytes and what follows. tails: its last eight bytes. known: where it was such a number. Returns how many were not.
    """
    others = _U0
    for i in range(np.uint64(len(out))):
        negative = np.uint64(heads[i] & _BYTE == _MINUS)
        head = heads[i] >> (negative * _U8)
        digit = (head & _BYTE) - _ZERO
        length = lengths[i] - negative
        no_digits = (_U10 - (length if length > _U2 else _U2)) * _U4 & _U63  # half the bits of the tail that are not behind the point
        x = (tails[i] ^ _DIGIT_ZEROS) >> no_digits >> no_digits  # zeros come behind the digits
        plain = (length - _U1 < _U10) & (digit <= _U9) & ((length == _U1) | (head >> _U8 & _BYTE == _POINT))
        plain &= ((x + _TO_HIGH_BIT) | x) & _HIGH_BITS == _U0
        x = (x * _U10 + (x >> _U8)) & _PAIRS  # two digits in each 16 bits
        x = (x * _U100 + (x >> _U16)) & _FOURS
        x = (x * _U10000 + (x >> _U32)) & _EIGHT
        value = np.float64(np.int64(digit * _TEN_TO_8 + x)) / 1e8
        out[i] = np.float32(-value if negative else value)
        known[i] = plain
        others += np.uint64(not plain)
    return others


# No cache on disk: numba's is a pickle, and compiling takes about a second.
@numba.njit(
    numba.void(
        numba.types.Array(numba.uint8, 1, "C", readonly=True), numba.uint64[::1], numba.uint64[::1], numba.float32[:, ::1],
        numba.bool_[::1], numba.uint64[:, ::1], numba.bool_[::1],
    ),
    nogil=True,
)
def _parse_rows(text, starts, stops, out, plain, found, known):
    width = np.uint64(out.shape[1])
    ends, heads, tails, lengths = found[0], found[1], found[2], found[3]
    for row in range(len(starts)):
        if _find_numbers(text, starts[row], stops[row], ends, heads, tails, lengths) != width:
            continue
        plain[row] = True
        if _pointed_numbers(heads, tails, lengths, out[row], known):
            for i in range(width):
                if not known[i]:
                    value, good = _any_number(text, ends[i] - lengths[i], ends[i])
                    out[row, i] = np.float32(value)
                    plain[row] &= good


def parse_rows(text, starts, stops, out):
    """Parses text[starts[i] : stops[i]], comma-separated numbers, into out[i].

    Args:
        text: uint8 [n], read-only, as np.frombuffer(bytes) is. starts, stops: uint64 [N]. out: float32 [N, D].

    Returns:
        bool [N]: True where there were D plain numbers. Elsewhere out[i] holds anything, and the exact reader must look.
    """
    plain = np.zeros(len(starts), np.bool_)
    found, known = np.empty((4, out.shape[1] + 64), np.uint64), np.empty(out.shape[1], np.bool_)
    _parse_rows(text, starts, stops, out, plain, found, known)
    return plain
