"""Readers of MNIST's and CIFAR-10's files, which believe nothing: each fault is a FormatError naming file and fault.

Shapes: N images, F features.
"""

from __future__ import annotations

import contextlib
import gzip
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from topogen.errors import FormatError

__all__ = ["CIFAR10_FILES", "MNIST_FILES", "Images", "existing", "holds", "read_cifar10", "read_mnist"]

Images = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images, shape (N, F), and their labels, shape (N,)."""

# file -> SHA-256 of the original; a file of the user's own need not have it
MNIST_FILES = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
CIFAR10_FILES = {  # in the order in which they are read, the test batch last
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}


def existing(folder: Path, name: str) -> Path:
    """Return the file of that name, or its xz-compressed form where only that is there."""
    packed = folder / f"{name}.xz"
    return packed if packed.exists() and not (folder / name).exists() else folder / name


def holds(folder: Path, files: dict[str, str]) -> bool:
    """Whether the folder holds all these files; a part of them is refused, since it is most likely a broken copy."""
    missing = [name for name in files if not existing(folder, name).exists()]
    if 0 < len(missing) < len(files):
        raise FormatError(f"{folder} must hold all {len(files)} files of the data set. Missing: {', '.join(missing)}.")
    return not missing


def read_mnist(folder: Path) -> tuple[Images, Images]:
    """Return MNIST's training and test images, 28x28, row by row."""
    train, test = (
        _idx_pair(folder / f"{part}-images-idx3-ubyte.gz", folder / f"{part}-labels-idx1-ubyte.gz")
        for part in ("train", "t10k")
    )
    return train, test


def _idx_pair(images_path: Path, labels_path: Path) -> Images:
    images, labels = _read_idx(images_path, 3), _read_idx(labels_path, 1)
    if images.shape[1:] != (28, 28):
        raise FormatError(f"{images_path} must hold images of 28x28. Got {images.shape[1]}x{images.shape[2]}.")
    if len(images) != len(labels):
        raise FormatError(f"{labels_path} must hold {len(images)} labels, one an image. Got {len(labels)}.")
    return images.reshape(len(images), -1), _labels(labels, labels_path)


def _read_idx(path: Path, ndim: int) -> NDArray[np.uint8]:
    """Return an IDX file of bytes: the magic number 0, 0, 8, ndim; then the sizes, big-endian; then the bytes."""
    with _reading(path), gzip.open(path) as file:
        content = file.read()
    magic, header = 0x800 + ndim, 4 + 4 * ndim
    if len(content) < header or int.from_bytes(content[:4], "big") != magic:
        start = content[:4].hex() or "nothing"
        raise FormatError(
            f"{path} must be an IDX file of bytes in {ndim} dimensions, starting {magic:08x}. Got {start}."
        )
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", ndim, offset=4))
    size = int(np.prod(shape, dtype=object))
    if len(content) - header != size or not size:
        raise FormatError(
            f"{path} must hold {size:,} bytes after its header, at least 1. Got {len(content) - header:,}."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_cifar10(folder: Path) -> tuple[Images, Images]:
    """Return CIFAR-10's training and test images: 32x32 red, then green, then blue, row by row."""
    batches = [_read_cifar_batch(existing(folder, name)) for name in CIFAR10_FILES]
    counts = [len(labels) for _, labels in batches]
    if len(set(counts)) > 1:  # a file cut off between two records
        raise FormatError(f"{folder} must hold six batches of equal length. Got {counts} images.")
    images, labels = zip(*batches[:5], strict=True)
    return (np.concatenate(images), np.concatenate(labels)), batches[5]


def _read_cifar_batch(path: Path) -> Images:
    """Return a batch: records of 1 label byte and 3 x 1024 pixel bytes."""
    with _reading(path), lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
        content = file.read()
    if not content or len(content) % 3073:
        raise FormatError(f"{path} must hold records of 3073 bytes, at least one. Got {len(content):,} bytes.")
    records = np.frombuffer(content, np.uint8).reshape(-1, 3073)
    return records[:, 1:], _labels(records[:, 0], path)


def _labels(labels: NDArray[np.uint8], path: Path) -> NDArray[np.int64]:
    if labels.max() > 9:
        raise FormatError(f"{path} must hold labels in [0, 9]. Got {labels.max()}.")
    return labels.astype(np.int64)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what decompression raises into a FormatError."""
    try:
        yield
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise FormatError(f"{path} is damaged: {error}.") from None
