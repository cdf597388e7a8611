"""Sets up matplotlib for all commands that draw, and turns a figure into a PNG file or into text for a web page.

matplotlib is imported when the first figure is made, so that a command that draws nothing starts without it.
"""
import base64
import io

from util.lib import atomic

BLUE, RED, GREY, GREEN = "#2f6db3", "#d1495b", "#b8c0cc", "#3c8a3a"
FILE_DPI, PAGE_DPI = 120, 110  # pixels per inch of a figure in a file, and of one in a web page


def pyplot():
    """matplotlib.pyplot, set up to draw without a screen and to show the dollar signs of class names as they are."""
    import matplotlib

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
