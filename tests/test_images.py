"""util/lib/images.py: paths that leave the folder, and the middle of an image (odd files: test_extract_features.py)."""
import cv2
import numpy as np
import pytest

from util.lib import images

pytestmark = pytest.mark.check


@pytest.fixture
def folder(tmp_path):
    """images/a/b.png, a sibling whose name begins alike, and links to both."""
    for name in ("images/a/b.png", "images2/c.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        cv2.imwrite(str(tmp_path / name), np.zeros((2, 2, 3), np.uint8))
    (tmp_path / "images" / "inside.png").symlink_to(tmp_path / "images" / "a" / "b.png")
    (tmp_path / "images" / "outside.png").symlink_to(tmp_path / "images2" / "c.png")
    return tmp_path / "images"


@pytest.mark.parametrize("ending", ["", "/", "/."])
def test_paths_below_a_folder(folder, ending):
    """The same for a folder that is named with a slash at its end."""
    image_dir = f"{folder}{ending}"
    inside = str((folder / "a" / "b.png").resolve())
    for name in ("a/b.png", "a/../a/b.png", "inside.png"):
        assert images.path_below(image_dir, name) == inside
    for name in ("../images2/c.png", "outside.png", str(folder.parent / "images2" / "c.png"), "..", ""):
        assert images.path_below(image_dir, name) is None


def test_everything_is_below_the_root():
    assert images.path_below("/", "proc") == "/proc"


def test_colours_are_rgb(tmp_path):
    pixels = np.zeros((3, 5, 3), np.uint8)
    pixels[:, :, 0] = 200  # blue, for OpenCV
    cv2.imwrite(str(tmp_path / "blue.png"), pixels)
    found, why = images.read(str(tmp_path / "blue.png"))
    assert (found.shape, why) == ((3, 5, 3), "")
    assert found[0, 0].tolist() == [0, 0, 200]


def test_markers_of_a_jpeg_may_be_padded_and_a_cut_off_one_is_found(tmp_path):
    """ITU T.81, B.1.1.2: any number of FF bytes may stand in front of a marker."""
    good = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8))[1].tobytes()
    second = 4 + int.from_bytes(good[4:6], "big")
    padded = good[:second] + b"\xff\xff" + good[second:]
    for data, whole in ((good, True), (padded, True), (good[:-9], False), (padded[:-9], False)):
        (tmp_path / "a.jpg").write_bytes(data)
        assert (images.read(str(tmp_path / "a.jpg"))[0] is not None) == whole


def test_a_strip_is_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "strip.png"), np.zeros((1, 101, 3), np.uint8))
    assert images.read(str(tmp_path / "strip.png")) == (None, "101 x 1 pixels: one side is more than 100 times the other")


def test_the_middle_is_cut_out():
    """A left, a middle and a right third of their own; nothing is resized if the shorter side has that size."""
    wide = np.repeat(np.uint8([10, 20, 30]), 7)[None, :, None] * np.ones((7, 1, 3), np.uint8)
    assert (images.middle(wide, 7, 7) == 20).all()
    assert (images.middle(wide.transpose(1, 0, 2), 7, 7) == 20).all()
    assert images.middle(wide, 14, 5).shape == (5, 5, 3)
    assert (images.middle(wide, 14, 5) == 20).all()
    np.testing.assert_array_equal(images.middle(wide, 7, 5), wide[1:6, 8:13])


def test_pixels_are_repeated_where_an_image_is_enlarged_without_smoothing():
    pixels = np.random.default_rng(0).integers(0, 255, (3, 3, 3), np.uint8)
    np.testing.assert_array_equal(images.middle(pixels, 12, 12, smooth=False), pixels.repeat(4, axis=0).repeat(4, axis=1))
    assert set(images.middle(pixels, 12, 12).ravel()) - set(pixels.ravel())
