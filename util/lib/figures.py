"""Sets up matplotlib for all commands that draw, and turns a figure into a PNG file or into text for a web page.

matplotlib is imported when the first figure is made, so that a command that draws nothing starts without it.
"""
import base64
import io
import textwrap
import warnings
from typing import NamedTuple

import numpy as np

from util.lib import atomic
from util.lib.errors import UserError

BLUE, RED, GREY, GREEN = "#2f6db3", "#d1495b", "#b8c0cc", "#3c8a3a"
FILE_DPI, PAGE_DPI = 120, 110  # pixels per inch of a figure in a file, and of one in a web page
MOST_PIXELS = 1 << 16  # per side, of a PNG by matplotlib
MOSAIC_DPI, GAP, CAPTION, TITLE, HEADING = 100, 10, 46, 140, 36  # of a mosaic; all but the first in pixels
CAPTION_SIZE, CHARACTER = 8, 6.2  # points; pixels that a character of that size takes in the mean
TITLE_CHARACTERS, LINE = 14, 17  # of a mosaic's title: characters per line; pixels of a line
LABELS = {1: ("correct", "#2b7a2b"), 0: ("wrong", "#c0233b")}  # of verified rows: a word and a colour
UNVERIFIED = ("", "#555555")


class Cell(NamedTuple):
    """An image of a mosaic. pixels: uint8 [size, size, 3], or None: no image. text: below it. colour: of text and frame."""

    pixels: np.ndarray | None
    text: str
    colour: str


def pyplot():
    """matplotlib.pyplot, set up to draw without a screen and to show the dollar signs of class names as they are."""
    import matplotlib

    warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # one for each letter of a script that no font has
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams["text.parse_math"] = False
    return plt


def figure(width, height, columns=1):
    """A figure of width x height inches with `columns` axes side by side, laid out so that no labels overlap.

    Returns:
        (figure, axes): one axes object for one column, else an array of them.
    """
    return pyplot().subplots(1, columns, figsize=(width, height), layout="constrained")


def save_png(figure, path, dpi=FILE_DPI):
    """Writes a figure as a PNG file, whole or not at all, and closes the figure."""
    with atomic.whole_file(path) as file:
        figure.savefig(file, format="png", dpi=dpi)
    pyplot().close(figure)


def png_base64(figure, dpi=PAGE_DPI):
    """A figure as a PNG in base64, a str for the `src` of an HTML image. Closes the figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    pyplot().close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


def fitted(text, size):
    """A text, shortened in its middle to what fits in a line below an image of `size` pixels."""
    most = int((size + GAP) / CHARACTER)
    return text if len(text) <= most else f"{text[: most // 3]}…{text[len(text) - (most - most // 3 - 1) :]}"


def mosaic(lines, size, path, headings=None):
    """Writes a PNG with lines of images.

    Args:
        lines: list of (title, list of Cell, or None for a gap). size: side of an image in pixels. path: of the PNG.
        headings: {column: text above it}.
    """
    cell = size + GAP
    width, height = max(len(cells) for _, cells in lines) * cell + TITLE, len(lines) * (cell + CAPTION) + HEADING
    if max(width, height) >= MOST_PIXELS:
        raise UserError(
            f"{path}: a picture of {width} x {height} pixels, which is more than {MOST_PIXELS}; draw fewer or smaller images"
        )
    drawing = pyplot().figure(figsize=(width / MOSAIC_DPI, height / MOSAIC_DPI), dpi=MOSAIC_DPI)
    for column, text in (headings or {}).items():
        drawing.text((TITLE + column * cell) / width, 1 - 20 / height, text, fontsize=11, weight="bold")
    for i, (title, cells) in enumerate(lines):
        top = HEADING + i * (cell + CAPTION)
        title = textwrap.fill(title, TITLE_CHARACTERS, max_lines=max(1, size // LINE), placeholder="…")
        drawing.text(8 / width, 1 - (top + size / 2) / height, title, fontsize=10, va="center")
        for column, found in enumerate(cells):
            if found:
                left = TITLE + column * cell
                axes = drawing.add_axes((left / width, 1 - (top + size) / height, size / width, size / height))
                _draw_cell(axes, found)
    save_png(drawing, path, dpi=MOSAIC_DPI)


def _draw_cell(axes, cell):
    """Draws one image, or a placeholder for None, in a frame of its colour."""
    axes.set_xticks([])
    axes.set_yticks([])
    if cell.pixels is None:
        axes.text(0.5, 0.5, "no image", ha="center", va="center", fontsize=CAPTION_SIZE, color="gray")
    else:
        axes.imshow(cell.pixels)
    for spine in axes.spines.values():
        spine.set_color(cell.colour)
        spine.set_linewidth(2)
    axes.set_xlabel(cell.text, fontsize=CAPTION_SIZE, color=cell.colour, labelpad=2, linespacing=1.05)
