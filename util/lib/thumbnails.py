"""Images for a web page: decoded, made smaller and encoded anew, so that no byte of a user's file reaches the browser.

A module of its own because it bounds the memory that a folder of unknown images can take.
"""
import collections
import os
import threading

import cv2

from util.lib import images

MOST_BYTES = 64 << 20  # of an image file
MOST_CACHED = 128 << 20  # bytes of thumbnails that are kept
SMALL, LARGE = 320, 1600  # the longest side of a thumbnail, and of a zoomed image, in pixels
PIXEL_ART = 64  # up to here an image stays as it is, and the page repeats its pixels


class Thumbnails:
    """The images of a folder, by key. Thumbnails are kept, the latest used ones, within MOST_CACHED bytes."""

    def __init__(self, image_dir):
        self._image_dir = image_dir
        self._cache, self._size = collections.OrderedDict(), 0
        self._decoder = threading.Lock()  # one decoded image in memory: it may have 268 million pixels

    def find(self, key):
        """The path of an image; None where there is no such file in the folder, links out of it included."""
        path = images.path_below(self._image_dir, key) if "\0" not in key else None
        return path if path and os.path.isfile(path) else None

    def get(self, key, large=False):
        """An image for the page.

        Returns:
            (bytes of a PNG or JPEG, "") or (None, why it cannot be shown, in words).
        """
        with self._decoder:
            if not large and key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key], ""
            data, why = self._make(key, LARGE if large else SMALL)
            if data and not large:
                self._keep(key, data)
            return data, why

    def _make(self, key, side):
        path = self.find(key)
        if path is None:
            return None, "no such file in the folder of images"
        if os.path.getsize(path) > MOST_BYTES:
            return None, f"the file is larger than {MOST_BYTES >> 20} MB"
        pixels, why = images.read(path)
        if why:
            return None, why
        longest = max(pixels.shape[:2])
        if longest > side:
            size = [max(1, round(n * side / longest)) for n in pixels.shape[1::-1]]
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        suffix = ".png" if longest <= PIXEL_ART else ".jpg"
        return cv2.imencode(suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes(), ""

    def _keep(self, key, data):
        self._cache[key] = data
        self._size += len(data)
        while self._size > MOST_CACHED:
            self._size -= len(self._cache.popitem(last=False)[1])
