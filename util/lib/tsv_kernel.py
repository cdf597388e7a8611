"""A compiled parser of plain decimal numbers, and what else makes large files fast to read.

A module of its own because numba takes a second to start and compile: tsv.py calls load() only for a file that is large
enough to gain by it, and parses small files without.

A number is w * 10^e with whole w. With w up to 2^53 and |e| up to 22 both factors are exact as float64. One
multiplication or division then rounds once, and the result is the float64 nearest to the text: Clinger, "How to read
floating point numbers accurately" (1990). With more digits the result is a few roundings off. Where that could change
the float32, and for all other text, the number is not plain: tsv.py's exact reader must read it. The kernel does not
hold the GIL, so threads parse side by side.

The kernel first finds the numbers of a row, 64 bytes at a time. Most of them are d or d.dddd. These are computed all
alike and without a branch, so that the compiler does several in one instruction; the others follow one by one.
"""
import contextlib
import ctypes
import functools
import gc

import numpy as np

_POWERS = 10.0 ** np.arange(23)  # exact
_TEN_TO_8 = np.uint64(10**8)
_EXACT = np.uint64(1 << 53)
_OFF = 1e-15  # twice a bound of the relative error of two roundings to float64

# uint64 throughout: a signed index may be negative, and numba's test for that costs a step each; a mix of signed and
# unsigned becomes a float.
_U0, _U1, _U2, _U4, _U8, _U9, _U10, _U16, _U32, _U63, _U64, _U100, _U10000 = (
    np.uint64(x) for x in (0, 1, 2, 4, 8, 9, 10, 16, 32, 63, 64, 100, 10000)
)
_BYTE, _MINUS, _POINT, _ZERO = (np.uint64(x) for x in (0xFF, ord("-"), ord("."), ord("0")))

# Eight bytes in one integer, the first one lowest.
_DIGIT_ZEROS = np.uint64(0x3030303030303030)
_TO_HIGH_BIT = np.uint64(0x7676767676767676)  # takes 10 and above to 128 and above
_HIGH_BITS = np.uint64(0x8080808080808080)
_PAIRS, _FOURS, _EIGHT = (np.uint64(x) for x in (0x00FF00FF00FF00FF, 0x0000FFFF0000FFFF, 0x00000000FFFFFFFF))


def keep_freed_memory():
    """Has glibc keep freed memory for the next block of text: to get it from Linux again costs as much as parsing."""
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # of malloc.h
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.mallopt(trim_threshold, 256 << 20)
        libc.mallopt(arena_max, 1)  # what one thread frees is another's next block


def _compile_bytes():
    """Three functions: eight bytes of a text as an integer, the commas among 64 bytes, the trailing zeros of bits."""
    import numba
    from llvmlite import ir
    from numba.extending import intrinsic

    def loaded(context, builder, text_type, text, index, what):
        """Code that loads a `what` from text[index:]."""
        data = context.make_array(text_type)(context, builder, text).data
        return builder.load(builder.bitcast(builder.gep(data, [index]), what.as_pointer()), align=1)

    @intrinsic
    def eight_bytes(_, text, index):
        def generate(context, builder, signature, arguments):
            return loaded(context, builder, signature.args[0], *arguments, ir.IntType(64))

        return numba.uint64(text, index), generate

    @intrinsic
    def commas(_, text, index):
        """A bit for each of text[index : index + 64]: is it a comma?"""

        def generate(context, builder, signature, arguments):
            bytes_64 = ir.VectorType(ir.IntType(8), 64)
            found = loaded(context, builder, signature.args[0], *arguments, bytes_64)
            is_comma = builder.icmp_unsigned("==", found, ir.Constant(bytes_64, [ord(",")] * 64))
            return builder.bitcast(is_comma, ir.IntType(64))

        return numba.uint64(text, index), generate

    @intrinsic
    def trailing_zeros(_, bits):
        def generate(context, builder, signature, arguments):
            return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

        return numba.uint64(bits), generate

    return eight_bytes, commas, trailing_zeros


def _compile_any_number():
    import numba

    @numba.njit(nogil=True)
    def any_number(text, i, end):
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

    return any_number


def _compile_find_numbers():
    import numba

    eight_bytes, commas, trailing_zeros = _compile_bytes()

    @numba.njit(nogil=True)
    def find_numbers(text, start, stop, ends, heads, tails, lengths):
        """Finds the numbers of text[start:stop]: their ends, first and last eight bytes, and lengths.

        Returns how many there are, or one more than are wanted. The arrays hold 64 more than that.
        """
        size, wanted, count, index = np.uint64(len(text)), np.uint64(len(ends)) - _U64, _U0, start
        while index <= stop and count <= wanted:
            if index + _U64 <= size:
                found = commas(text, index)
            else:
                found = _U0
                for i in range(index, stop):
                    found |= np.uint64(text[i] == 44) << np.uint64(i - index)
            if stop - index < _U64:  # the row ends here, as the last number does
                last = _U1 << (stop - index)
                found = found & (last - _U1) | last
            while found:
                end = index + trailing_zeros(found)
                found &= found - _U1
                ends[count], lengths[count] = end, end - start
                # Where eight bytes would reach out of the text, nothing that could be a number.
                heads[count] = eight_bytes(text, start) if start + _U8 <= size else _U0
                tails[count] = eight_bytes(text, end - _U8) if end >= _U8 else _U0
                start = end + _U1
                count += _U1
            index += _U64
        return count if count <= wanted else wanted + _U1

    return find_numbers


def _compile_pointed_numbers():
    import numba

    @numba.njit(nogil=True, error_model="numpy")
    def pointed_numbers(heads, tails, lengths, out, known):
        """Puts the value of each number d or d.dddd, at most eight digits behind the point, perhaps a minus, into out.

        heads: its first bytes and what follows. tails: its last eight bytes. known: where it was such a number.
        Returns how many were not.
        """
        others = _U0
        for i in range(np.uint64(len(out))):
            negative = np.uint64(heads[i] & _BYTE == _MINUS)
            head = heads[i] >> (negative * _U8)
            digit = (head & _BYTE) - _ZERO
            length = lengths[i] - negative
            # Half the bits of the tail that are not behind the point.
            no_digits = (_U10 - (length if length > _U2 else _U2)) * _U4 & _U63
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

    return pointed_numbers


def _compile_rows():
    """The whole kernel, compiled now: a function of the arguments of parse_rows in load(), then working memory."""
    import numba

    find_numbers = _compile_find_numbers()
    pointed_numbers, any_number = _compile_pointed_numbers(), _compile_any_number()

    # No cache on disk: numba's is a pickle, and compiling takes about a second.
    @numba.njit(
        numba.void(
            numba.types.Array(numba.uint8, 1, "C", readonly=True), numba.uint64[::1], numba.uint64[::1],
            numba.float32[:, ::1], numba.bool_[::1], numba.uint64[:, ::1], numba.bool_[::1],
        ),
        nogil=True,
    )
    def rows(text, starts, stops, out, plain, found, known):
        width = np.uint64(out.shape[1])
        ends, heads, tails, lengths = found[0], found[1], found[2], found[3]
        for row in range(len(starts)):
            if find_numbers(text, starts[row], stops[row], ends, heads, tails, lengths) != width:
                continue
            plain[row] = True
            if pointed_numbers(heads, tails, lengths, out[row], known):
                for i in range(width):
                    if not known[i]:
                        value, good = any_number(text, ends[i] - lengths[i], ends[i])
                        out[row, i] = np.float32(value)
                        plain[row] &= good

    return rows


@functools.cache
def load():
    """Compiles the kernel, which takes about a second, once per process. Returns the function parse_rows."""
    gc.disable()  # the compiler makes many objects that stay; to search them each time costs half a second
    try:
        rows = _compile_rows()
    finally:
        gc.freeze()
        gc.enable()

    def parse_rows(text, starts, stops, out):
        """Parses text[starts[i] : stops[i]], comma-separated numbers, into out[i].

        Args:
            text: uint8 [n], read-only, as np.frombuffer(bytes) is. starts, stops: uint64 [N]. out: float32 [N, D].

        Returns:
            bool [N]: True where there were D plain numbers. Elsewhere out[i] holds anything, and the exact reader must
            read the row.
        """
        plain = np.zeros(len(starts), np.bool_)
        found, known = np.empty((4, out.shape[1] + 64), np.uint64), np.empty(out.shape[1], np.bool_)
        rows(text, starts, stops, out, plain, found, known)
        return plain

    return parse_rows
