"""Reads images: the check of paths, the reader and the rule for the middle that all commands with images share."""
import base64
import os
import stat

# cv2 reads these when it is imported. A small file can claim to be a huge image, and a damaged one would print several lines.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 28))
import cv2
import numpy as np

from util.lib.errors import UserError, reason

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
PNG_END = b"IEND\xaeB`\x82"  # the last chunk, which more bytes may follow
MOST_OBLONG = 100  # a strip of 1 x 10,000 pixels would be resized to gigabytes


def path_below(folder, name):
    """The real path of folder/name, links resolved; None if it lies outside the folder."""
    folder = os.path.realpath(folder)
    path = os.path.realpath(os.path.join(folder, name))
    return path if path.startswith(folder.rstrip(os.sep) + os.sep) else None


def check_outputs(outputs, image_dir):
    """Raises UserError where an output would replace an image. outputs: {flag or description: path, or None}. image_dir: path or None."""
    for name, path in outputs.items():
        is_image = path and os.path.isfile(path) and path.lower().endswith(SUFFIXES)
        if is_image and image_dir and path_below(image_dir, os.path.realpath(path)):
            raise UserError(f"{name}={path} is an image of --image_dir, which it would replace; name another file")


def read(path):
    """Decodes an image file: grey and 16-bit ones become 8-bit RGB, EXIF turns are applied, transparency is dropped.

    Returns:
        (uint8 [height, width, 3] RGB, "") or (None, why the image cannot be used).
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None, "not a file"  # a named pipe would be waited for
        with open(path, "rb") as file:
            data = file.read()
    except (OSError, ValueError) as error:
        return None, reason(error)
    if not data:
        return None, "the file is empty"
    if data.startswith(b"\xff\xd8") and not _is_whole_jpeg(data):  # OpenCV would fill the missing part with grey
        return None, "the JPEG is cut off"
    if data.startswith(b"\x89PNG") and PNG_END not in data:
        return None, "the PNG is cut off"
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        pixels = None
    if pixels is None:
        return None, "not an image that can be read, or a too large one"
    height, width = pixels.shape[:2]
    if max(height, width) > MOST_OBLONG * min(height, width):
        return None, f"{width} x {height} pixels: one side is more than {MOST_OBLONG} times the other"
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels), ""


def _is_whole_jpeg(data):
    """Whether an end marker follows the image data of a JPEG: not that of a thumbnail, but perhaps with more bytes behind it."""
    position = 2
    while 0 <= (position := data.find(b"\xff", position)) <= len(data) - 4:  # decoders skip other bytes between the segments
        if data[position + 1] == 0xDA:  # the image data begins, in which no other marker can occur
            return data.find(b"\xff\xd9", position) >= 0
        if data[position + 1] in (0x00, 0xFF):  # no marker; FF may be repeated in front of one
            position += 1
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False


def middle(pixels, resize, crop, smooth=True, place=(0.5, 0.5)):
    """Resizes the shorter side of an image to `resize` pixels and cuts out the middle, crop x crop pixels.

    Args:
        pixels: uint8 [height, width, 3]. smooth: interpolate where the image is enlarged; False: repeat its pixels.
        place: of another part to cut out: shares of what is left over that lie above it and on its left, from 0 to 1.

    Returns:
        uint8 [crop, crop, 3].
    """
    height, width = pixels.shape[:2]
    scale = resize / min(height, width)
    size = max(crop, round(width * scale)), max(crop, round(height * scale))
    if size != (width, height):
        enlarging = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else enlarging)
    top, left = (int((side - crop) * share) for side, share in zip(pixels.shape, place))
    return pixels[top : top + crop, left : left + crop]


def find(key, url, folder):
    """The path of an image: folder/key (never outside the folder), else the url if it is a local file, else None."""
    path = path_below(folder, key) if folder else None
    if path and os.path.isfile(path):
        return path
    path = url.removeprefix("file://")
    return path if path and os.path.isfile(path) else None


def thumbnail(path, size):
    """uint8 [size, size, 3] RGB, the middle of an image; None if there is no path or the image cannot be read."""
    pixels = read(path)[0] if path else None
    return None if pixels is None else middle(pixels, size, size, smooth=False)


def jpeg_base64(pixels):
    """uint8 [height, width, 3] RGB as a JPEG in base64, a str for the `src` of an HTML image."""
    return base64.b64encode(cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1]).decode()
