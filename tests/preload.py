"""What the server of commands.py imports, so that the commands forked from it need not."""
import inspect

import absl.app  # noqa: F401
import coverage  # noqa: F401
import cv2  # noqa: F401
import keras  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import pyarrow.parquet  # noqa: F401
import scipy.sparse  # noqa: F401
import sklearn.linear_model  # noqa: F401
import tensorflow  # noqa: F401
import tqdm  # noqa: F401

inspect.getmodule(inspect.currentframe())  # remembers the files of all modules, which coverage asks for
