"""What style an image is of: near-empty, a line drawing, grey or colour. Rough and quick rules on a small copy of it.

A module of its own because it is a rule with numbers, apart from the command that uses it.
"""
import cv2
import numpy as np

from util.lib import images

COLOUR, GREY, DRAWING, EMPTY, TINY, UNREADABLE = "colour", "grey", "line drawing", "near-empty", "tiny", "no image"
SIDE = 64  # pixels of the copy
FLAT = 10  # levels of grey, of 255, within which pixels count as the background
MOSTLY_EMPTY, MOSTLY_BACKGROUND = 0.97, 0.5  # shares of background
NEARLY_GREY = 8  # mean difference between the largest and the smallest channel
DARK, LIGHT, MOSTLY_EXTREME = 50, 205, 0.7  # levels, and the share of pixels beyond them, of black on white or white on black
TINY_SHARE = 0.25  # of the median shorter side


def style_of(pixels):
    """One of COLOUR, GREY, DRAWING and EMPTY for an image, uint8 [height, width, 3]."""
    small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)  # [SIDE, SIDE, 3]
    grey = small.mean(axis=2)
    commonest = np.argmax(np.convolve(np.bincount(grey.astype(int).ravel(), minlength=256), np.ones(FLAT), "same"))
    background = np.mean(np.abs(grey - commonest) <= FLAT)
    if background >= MOSTLY_EMPTY:
        return EMPTY
    if np.mean(small.max(axis=2) - small.min(axis=2)) >= NEARLY_GREY:
        return COLOUR
    extreme = np.mean((grey < DARK) | (grey > LIGHT))
    return DRAWING if extreme >= MOSTLY_EXTREME and background >= MOSTLY_BACKGROUND else GREY


def styles_of(paths):
    """The style of each image file, a list of str; TINY where its shorter side is far below their median.

    Args:
        paths: iterable of path, or None for no image.
    """
    found, sides = [], []
    for path in paths:
        pixels = images.read(path)[0] if path else None
        found.append(UNREADABLE if pixels is None else style_of(pixels))
        sides.append(np.nan if pixels is None else min(pixels.shape[:2]))
    usual = np.nanmedian(sides) if np.isfinite(sides).any() else 0
    return [TINY if side < TINY_SHARE * usual else style for style, side in zip(found, sides)]
