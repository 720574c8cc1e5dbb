"""Data sets as arrays: scikit-learn's bundled digits, MNIST and CIFAR-10.

Shapes: N images, F features (pixels times channels), C channels, P pixels.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topogen import checks
from topogen.errors import SpecError
from topogen_torch._training._data_files import CIFAR10_FILES, MNIST_FILES, Images, holds, read_cifar10, read_mnist
from topogen_torch._training._download import Source, downloaded

__all__ = ["NAMES", "DataSet", "check_name", "load_data"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DataSet:
    """Images and their classes, split into what is trained on and what is tested on.

    Attributes
    ----------
    name : str
        What `load_data` calls it.
    train_x, test_x : ndarray, shape (N, F), dtype float32
        Pixels, row by row, channel after channel; finite.
    train_y, test_y : ndarray, shape (N,), dtype int64
        Class of each image, in [0, len(classes)).
    classes : tuple of str
        The classes' names.
    image_shape : tuple of int
        What a row of x is reshaped to, to see it: (height, width) or (channels, height, width).

    Raises
    ------
    SpecError
        If an array has another shape or dtype, is empty, holds a NaN or an infinity, or a class is out of range.
    """

    name: str
    train_x: NDArray[np.float32]
    train_y: NDArray[np.int64]
    test_x: NDArray[np.float32]
    test_y: NDArray[np.int64]
    classes: tuple[str, ...]
    image_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        for part, x, y in (("train", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            _check_array(x, f"{part}_x", np.float32, (None, math.prod(self.image_shape)))
            _check_array(y, f"{part}_y", np.int64, (len(x),))
            if not np.isfinite(x).all():
                bad = np.count_nonzero(~np.isfinite(x))
                raise SpecError(
                    f"The '{part}_x' parameter of DataSet must be finite. Got {bad} NaN or infinite entries."
                )
            if y.min() < 0 or y.max() >= len(self.classes):
                span = f"[{y.min()}, {y.max()}]"
                raise SpecError(
                    f"The '{part}_y' parameter of DataSet must lie in [0, {len(self.classes) - 1}]. Got {span}."
                )

    @property
    def features(self) -> int:
        """Numbers an image, F."""
        return self.train_x.shape[1]

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of the four arrays: data sets that agree in it are the same."""
        digest = hashlib.sha256()
        for array in (self.train_x, self.train_y, self.test_x, self.test_y):
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        return digest.hexdigest()


def load_data(name: str = "digits", data_dir: str | os.PathLike[str] | None = None) -> DataSet:
    """Return a data set in its fixed split.

    Grey pixels are scaled to [0, 1], so that the background stays 0 and a neuron that sees nothing else stays silent.
    Colour pixels are standardised: of each channel the mean of all training pixels is subtracted, and the difference
    divided by their standard deviation.

    Parameters
    ----------
    name : {"digits", "mnist", "cifar10"}
        ``"digits"``: 1797 images of 8x8, bundled with scikit-learn, no download. Of each class every fifth image, in
        the bundled order, is for testing (355 images), the others for training (1442).
        ``"mnist"``: 60 000 + 10 000 images of 28x28. ``"cifar10"``: 50 000 + 10 000 colour images of 32x32.
    data_dir : path, optional
        Folder that holds ``mnist/`` (the four IDX files, ``.gz``) or ``cifar10/`` (the six files of the binary
        version, ``.bin`` or ``.bin.xz``). After it ``$TOPOGEN_DATA`` is looked in, then the download cache
        (``$TOPOGEN_CACHE``, or the user's cache folder). What is in none of them is downloaded into the cache and its
        checksums verified; ``$TOPOGEN_MIRROR`` replaces the address that it comes from.

    Returns
    -------
    DataSet

    Raises
    ------
    SpecError
        If the name is unknown or `data_dir` is no folder.
    FormatError
        If a file is damaged or of another format, a folder holds only a part of the files, or a download does not
        have the checksum that it must have (then nothing of it is kept).
    FileNotFoundError
        If the data set is in none of these places and cannot be downloaded.

    Examples
    --------
    >>> from topogen_torch.data import load_data
    >>> digits = load_data("digits")
    >>> digits.train_x.shape, digits.test_x.shape, float(digits.train_x.max())
    ((1442, 64), (355, 64), 1.0)
    """
    check_name(name, "name", "load_data")
    if data_dir is not None and not Path(data_dir).is_dir():
        checks.refuse("data_dir", "load_data", "a folder that exists", os.fspath(data_dir))
    if name == "digits":
        return _data_set(name, *_read_digits(), _DIGITS, (8, 8), white=16.0)
    files = _FILES[name]
    looked_in = [Path(place) / name for place in (data_dir, os.environ.get("TOPOGEN_DATA")) if place]
    found = next((folder for folder in looked_in if holds(folder, files.source.files)), None)
    return _data_set(
        name, *files.read(found or downloaded(name, files.source, looked_in)), files.classes, files.image_shape
    )


def check_name(name: str, parameter: str, owner: str) -> None:
    """Refuse what `load_data` does not know, naming what comes nearest."""
    if name not in NAMES:
        near = difflib.get_close_matches(str(name), NAMES, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else ""
        checks.refuse(parameter, owner, "'digits', 'mnist' or 'cifar10'", name, hint=hint)


@dataclass(frozen=True, slots=True)
class _Files:
    """A data set that is read from files: how, from where, and what its labels and images are."""

    read: Callable[[Path], tuple[Images, Images]]
    source: Source
    classes: tuple[str, ...]
    image_shape: tuple[int, ...]


_DIGITS = tuple("0123456789")
_FILES = {
    "mnist": _Files(
        read_mnist,
        Source(
            files=MNIST_FILES,
            mirrors=(
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
                "https://storage.googleapis.com/cvdf-datasets/mnist/",
            ),
        ),
        _DIGITS,
        (28, 28),
    ),
    "cifar10": _Files(
        read_cifar10,
        Source(
            files=CIFAR10_FILES,
            archive=("cifar-10-binary.tar.gz", "md5:c32a1d4ab5d03f1284b67883e8d87530"),
            mirrors=("https://www.cs.toronto.edu/~kriz/",),
        ),
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        (3, 32, 32),
    ),
}
NAMES = ("digits", *_FILES)
"""What `load_data` knows."""


def _read_digits() -> tuple[Images, Images]:
    from sklearn.datasets import load_digits

    bundle: Any = load_digits()
    images, labels = bundle.data.astype(np.uint8), bundle.target.astype(np.int64)
    is_test = np.zeros(len(labels), np.bool_)
    for digit in range(10):
        is_test[np.flatnonzero(labels == digit)[4::5]] = True
    return (images[~is_test], labels[~is_test]), (images[is_test], labels[is_test])


def _data_set(
    name: str, train: Images, test: Images, classes: tuple[str, ...], image_shape: tuple[int, ...], white: float = 255.0
) -> DataSet:
    """Return the data set: grey images as value / white, colour images standardised channel by channel."""
    if len(image_shape) == 3:
        shift_C, scale_C = _moments(train[0].reshape(len(train[0]), image_shape[0], -1))
    else:
        shift_C, scale_C = np.zeros(1), np.array([white])

    def scaled(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        x_NCP = images.reshape(len(images), len(shift_C), -1).astype(np.float32)
        x_NCP -= shift_C[:, None].astype(np.float32)
        x_NCP /= scale_C[:, None].astype(np.float32)
        return x_NCP.reshape(len(images), -1)

    return DataSet(
        name=name,
        train_x=scaled(train[0]),
        train_y=train[1],
        test_x=scaled(test[0]),
        test_y=test[1],
        classes=classes,
        image_shape=image_shape,
    )


def _moments(pixels_NCP: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of each channel; 1 for that of a constant one, so that it becomes 0."""
    # from the histogram of the 256 values: exact, and without a float64 copy of the images
    counts_CV = np.stack([np.bincount(channel.ravel(), minlength=256) for channel in pixels_NCP.swapaxes(0, 1)])
    share_CV = counts_CV / counts_CV.sum(axis=1, keepdims=True)
    value_V = np.arange(256.0)
    mean_C = share_CV @ value_V
    std_C = np.sqrt((share_CV * (value_V - mean_C[:, None]) ** 2).sum(axis=1))
    return mean_C, np.where(std_C == 0, 1.0, std_C)


def _check_array(value: Any, name: str, dtype: type, shape: tuple[int | None, ...]) -> None:
    """Refuse anything but an array of this dtype and shape; None stands for any length but 0."""
    if isinstance(value, np.ndarray):
        sizes = tuple(
            None if wanted is None and size else size for size, wanted in zip(value.shape, shape, strict=False)
        )
        if value.dtype == dtype and value.ndim == len(shape) and sizes == shape:
            return
    shown = f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
    wanted = f"(N >= 1, {shape[1]})" if shape[0] is None else f"{shape}"
    raise SpecError(f"The '{name}' parameter of DataSet must be {np.dtype(dtype)} of shape {wanted}. Got {shown}.")
