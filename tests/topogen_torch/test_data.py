"""Data sets: the split of the digits, the readers against files written here byte by byte, the download cache."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import logging
import lzma
import struct
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from topogen.errors import FormatError, SpecError
from topogen_torch import data as data_module
from topogen_torch.data import DataSet, load_data

MNIST = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
CIFAR = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")


@pytest.fixture(autouse=True)
def _nowhere_else(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test finds real data by chance, or asks the network for it."""
    if "data_dir" not in request.fixturenames:
        monkeypatch.delenv("TOPOGEN_DATA", raising=False)
    monkeypatch.setenv("TOPOGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TOPOGEN_MIRROR", "http://127.0.0.1:9")  # the discard port: nothing listens


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, n_train: int = 7, n_test: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    folder.mkdir(parents=True, exist_ok=True)
    for images, labels, n in ((MNIST[0], MNIST[1], n_train), (MNIST[2], MNIST[3], n_test)):
        arrays[images] = rng.integers(0, 256, (n, 28, 28))
        arrays[labels] = rng.integers(0, 10, n)
        for name in (images, labels):
            (folder / name).write_bytes(gzip.compress(idx(arrays[name])))
    return arrays


def write_cifar(folder: Path, n: int = 4, *, packed: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    batches = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name in CIFAR:
        records = rng.integers(0, 256, (n, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        batches[name] = records
        path = folder / (f"{name}.xz" if packed else name)
        path.write_bytes(lzma.compress(records.tobytes()) if packed else records.tobytes())
    return batches


# ---- digits


def test_digits_are_the_bundled_images_split_by_the_documented_rule() -> None:
    from sklearn.datasets import load_digits

    bundle = load_digits()
    digits = load_data("digits")
    seen = dict.fromkeys(range(10), 0)
    test = []
    for i, label in enumerate(bundle.target):  # the rule, spelled out image by image
        seen[int(label)] += 1
        if seen[int(label)] % 5 == 0:
            test.append(i)
    train = [i for i in range(len(bundle.target)) if i not in set(test)]
    assert (len(train), len(test)) == (1442, 355)
    np.testing.assert_array_equal(digits.train_y, bundle.target[train])
    np.testing.assert_array_equal(digits.test_y, bundle.target[test])
    np.testing.assert_array_equal(digits.train_x, bundle.data[train] / 16)  # sixteenths are exact
    np.testing.assert_array_equal(digits.test_x, bundle.data[test] / 16)
    assert digits.image_shape == (8, 8)
    assert digits.features == 64
    assert digits.classes == tuple("0123456789")


def test_digits_is_the_default() -> None:
    assert load_data().fingerprint() == load_data("digits").fingerprint()


# ---- readers


def test_mnist_reader_agrees_with_what_was_written(tmp_path: Path) -> None:
    arrays = write_mnist(tmp_path / "mnist")
    mnist = load_data("mnist", tmp_path)
    for x, images in ((mnist.train_x, MNIST[0]), (mnist.test_x, MNIST[2])):
        np.testing.assert_allclose(x, arrays[images].reshape(len(x), 784) / 255, rtol=1e-6)
    np.testing.assert_array_equal(mnist.train_y, arrays[MNIST[1]])
    np.testing.assert_array_equal(mnist.test_y, arrays[MNIST[3]])
    assert mnist.train_x.dtype == np.float32
    assert mnist.train_y.dtype == np.int64


@pytest.mark.parametrize("packed", [False, True])
def test_cifar10_reader_standardises_each_channel(tmp_path: Path, packed: bool) -> None:
    batches = write_cifar(tmp_path / "cifar10", packed=packed)
    cifar = load_data("cifar10", tmp_path)
    train = np.concatenate([batches[name] for name in CIFAR[:5]])
    channels = train[:, 1:].reshape(-1, 3, 1024).astype(np.float64)
    mean, std = channels.mean((0, 2)), channels.std((0, 2))
    np.testing.assert_allclose(cifar.train_x.reshape(-1, 3, 1024), (channels - mean[:, None]) / std[:, None], atol=2e-6)
    test = batches[CIFAR[5]][:, 1:].reshape(-1, 3, 1024)
    np.testing.assert_allclose(cifar.test_x.reshape(-1, 3, 1024), (test - mean[:, None]) / std[:, None], atol=2e-6)
    np.testing.assert_array_equal(cifar.train_y, train[:, 0])
    assert cifar.image_shape == (3, 32, 32)


def test_a_constant_channel_is_zero_and_not_nan(tmp_path: Path) -> None:
    for name, records in write_cifar(tmp_path / "cifar10").items():
        records[:, 1025:2049] = 9
        (tmp_path / "cifar10" / name).write_bytes(records.tobytes())
    cifar = load_data("cifar10", tmp_path).train_x.reshape(-1, 3, 1024)
    assert not cifar[:, 1].any()
    assert cifar[:, 0].std() == pytest.approx(1)


def test_environment_names_the_folder_and_data_dir_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "a" / "mnist", n_train=5)
    write_mnist(tmp_path / "b" / "mnist", n_train=6)
    monkeypatch.setenv("TOPOGEN_DATA", str(tmp_path / "a"))
    assert len(load_data("mnist").train_y) == 5
    assert len(load_data("mnist", tmp_path / "b").train_y) == 6
    (tmp_path / "empty").mkdir()
    assert len(load_data("mnist", tmp_path / "empty").train_y) == 5


def damaged_idx(name: str, content: bytes) -> tuple[str, bytes]:
    return name, gzip.compress(content)


GOOD = idx(np.zeros((7, 28, 28)))
FAULTS = {
    "not gzip": (MNIST[0], GOOD, "is damaged: Not a gzipped file"),
    "cut off": (MNIST[0], gzip.compress(GOOD, 0)[:-900], "is damaged: Compressed file ended"),
    "bit flip": (MNIST[0], gzip.compress(GOOD)[:-8] + b"\0" * 8, "is damaged: CRC check failed"),
    "magic": (MNIST[0], gzip.compress(b"\0\0\x09\x03" + GOOD[4:]), "starting 00000803. Got 00000903"),
    "labels for images": (MNIST[0], gzip.compress(idx(np.zeros(7))), "dimensions, starting 00000803. Got 00000801"),
    "empty": (MNIST[0], gzip.compress(b""), "starting 00000803. Got nothing"),
    "short header": (MNIST[0], gzip.compress(GOOD[:10]), "starting 00000803. Got 00000803"),
    "too short": (MNIST[0], gzip.compress(GOOD[:-1]), "5,488 bytes after its header, at least 1. Got 5,487"),
    "too long": (MNIST[0], gzip.compress(GOOD + b"\0"), "5,488 bytes after its header, at least 1. Got 5,489"),
    "absurd size": (MNIST[0], gzip.compress(GOOD[:4] + b"\xff" * 12), "after its header, at least 1. Got 0"),
    "no image": (MNIST[0], gzip.compress(idx(np.zeros((0, 28, 28)))), "0 bytes after its header, at least 1. Got 0"),
    "other size": (MNIST[0], gzip.compress(idx(np.zeros((7, 20, 30)))), "must hold images of 28x28. Got 20x30"),
    "other count": (MNIST[1], gzip.compress(idx(np.zeros(6))), "must hold 7 labels, one an image. Got 6"),
    "label": (MNIST[3], gzip.compress(idx(np.array([0, 10, 2]))), r"must hold labels in \[0, 9\]. Got 10"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_mnist_is_refused_by_file_and_fault(tmp_path: Path, fault: str) -> None:
    name, content, message = FAULTS[fault]
    write_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / name).write_bytes(content)
    with pytest.raises(FormatError, match=rf"{name.replace('.', '[.]')}.* {message}"):
        load_data("mnist", tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "data_batch_2.bin",
            b"\1" * 3072,
            r"data_batch_2.bin must hold records of 3073 bytes, at least one. Got 3,072 bytes",
        ),
        ("data_batch_2.bin", b"", r"data_batch_2.bin must hold records of 3073 bytes, at least one. Got 0 bytes"),
        (
            "data_batch_2.bin",
            b"\1" * 3073 * 3,
            r"must hold six batches of equal length. Got \[4, 3, 4, 4, 4, 4\] images",
        ),
        ("test_batch.bin", b"\x0b" * 3073 * 4, r"test_batch.bin must hold labels in \[0, 9\]. Got 11"),
    ],
)
def test_damaged_cifar10_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write_cifar(tmp_path / "cifar10")
    (tmp_path / "cifar10" / name).write_bytes(content)
    with pytest.raises(FormatError, match=message):
        load_data("cifar10", tmp_path)


def test_damaged_xz_is_refused(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar10", packed=True)
    path = tmp_path / "cifar10" / "test_batch.bin.xz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FormatError, match=r"test_batch.bin.xz is damaged: Compressed file ended"):
        load_data("cifar10", tmp_path)


def test_a_part_of_the_files_is_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / MNIST[2]).unlink()
    with pytest.raises(FormatError, match=rf"mnist must hold all 4 files of the data set. Missing: {MNIST[2]}"):
        load_data("mnist", tmp_path)


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(
        SpecError,
        match=r"The 'name' parameter of load_data must be 'digits', 'mnist' or 'cifar10'. Got 'minst'. "
        r"Did you mean 'mnist'\?",
    ):
        load_data("minst")
    with pytest.raises(
        SpecError, match=r"The 'data_dir' parameter of load_data must be a folder that exists. Got '.*/no'"
    ):
        load_data("mnist", tmp_path / "no")


# ---- DataSet


def arrays(n: int = 4, features: int = 6) -> dict[str, np.ndarray]:
    x, y = np.zeros((n, features), np.float32), np.zeros(n, np.int64)
    return {"train_x": x, "train_y": y, "test_x": x.copy(), "test_y": y.copy()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_x": np.zeros((4, 6))}, r"'train_x' .* DataSet must be float32 of shape \(N >= 1, 6\). Got float64"),
        ({"train_x": np.zeros((4, 5), np.float32)}, r"of shape \(N >= 1, 6\). Got float32 of shape \(4, 5\)"),
        ({"train_x": np.zeros((0, 6), np.float32)}, r"Got float32 of shape \(0, 6\)"),
        ({"test_x": [[0.0]]}, r"'test_x' parameter of DataSet must be float32 of shape \(N >= 1, 6\). Got list"),
        ({"test_y": np.zeros(3, np.int64)}, r"'test_y' .* must be int64 of shape \(4,\). Got int64 of shape \(3,\)"),
        ({"train_y": np.array([0, 1, 2, 0])}, r"'train_y' parameter of DataSet must lie in \[0, 1\]. Got \[0, 2\]"),
        ({"train_y": np.array([0, -1, 1, 0])}, r"'train_y' parameter of DataSet must lie in \[0, 1\]. Got \[-1, 1\]"),
        ({"test_x": np.full((4, 6), np.nan, np.float32)}, r"'test_x' .* must be finite. Got 24 NaN or infinite"),
    ],
)  # fmt: skip
def test_dataset_refuses_what_cannot_be_trained_on(change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        DataSet(name="x", classes=("a", "b"), image_shape=(2, 3), **(arrays() | change))


def test_fingerprint_tells_data_apart() -> None:
    def fingerprint(change: dict[str, np.ndarray]) -> str:
        return DataSet(name="x", classes=("a", "b"), image_shape=(2, 3), **(arrays() | change)).fingerprint()

    assert fingerprint({}) == fingerprint({})
    changes = [
        {},
        {"train_x": np.ones((4, 6), np.float32)},
        {"test_y": np.array([0, 0, 0, 1])},
        {"train_y": np.array([0, 0, 0, 1])},
    ]
    assert len({fingerprint(change) for change in changes}) == len(changes)


# ---- download


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A local server of tiny data sets, with their checksums in place of the real ones."""
    root, asked = tmp_path / "www", []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    write_mnist(root / "mnist")
    batches = write_cifar(tmp_path / "unpacked")
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name in ("batches.meta.txt", "../escape.bin", *CIFAR):
            body = batches[name].tobytes() if name in batches else b"not wanted"
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    (root / "cifar10").mkdir()
    (root / "cifar10" / "cifar-10-binary.tar.gz").write_bytes(content.getvalue())
    sums = {
        "mnist": {name: hashlib.sha256((root / "mnist" / name).read_bytes()).hexdigest() for name in MNIST},
        "cifar10": {name: hashlib.sha256(batches[name].tobytes()).hexdigest() for name in CIFAR},
    }
    archive = ("cifar-10-binary.tar.gz", f"md5:{hashlib.md5(content.getvalue()).hexdigest()}")
    known = {}
    for name, files in data_module._FILES.items():
        changed = replace(files.source, files=sums[name], archive=archive if files.source.archive else None)
        known[name] = replace(files, source=changed)
    monkeypatch.setattr(data_module, "_FILES", known)
    monkeypatch.setenv("TOPOGEN_MIRROR", f"http://127.0.0.1:{server.server_port}/")
    yield SimpleNamespace(root=root, asked=asked, cache=tmp_path / "cache", files=known)
    server.shutdown()
    server.server_close()
    thread.join()


def test_mnist_is_downloaded_once(mirror: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = load_data("mnist", mirror.root)
    with caplog.at_level(logging.WARNING, logger="topogen"):
        assert load_data("mnist").fingerprint() == expected.fingerprint()
    assert caplog.messages[0].startswith("Downloading train-images-idx3-ubyte.gz from http://127.0.0.1:")
    assert mirror.asked == [f"/mnist/{name}" for name in MNIST]
    assert sorted(path.name for path in (mirror.cache / "mnist").iterdir()) == sorted(MNIST)
    load_data("mnist")
    assert len(mirror.asked) == len(MNIST)


def test_a_damaged_file_in_the_cache_is_downloaded_again(mirror: SimpleNamespace) -> None:
    expected = load_data("mnist")
    (mirror.cache / "mnist" / MNIST[1]).write_bytes(b"damaged")
    assert load_data("mnist").fingerprint() == expected.fingerprint()
    assert mirror.asked[len(MNIST) :] == [f"/mnist/{MNIST[1]}"]


def test_cifar10_is_unpacked_without_its_paths(mirror: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "direct").mkdir()
    (tmp_path / "direct" / "cifar10").symlink_to(tmp_path / "unpacked")
    expected = load_data("cifar10", tmp_path / "direct")
    assert load_data("cifar10").fingerprint() == expected.fingerprint()
    assert sorted(path.name for path in mirror.cache.rglob("*")) == sorted(["cifar10", *CIFAR])
    load_data("cifar10")
    assert mirror.asked == ["/cifar10/cifar-10-binary.tar.gz"]


def test_a_wrong_checksum_is_refused_and_leaves_nothing(mirror: SimpleNamespace) -> None:
    (mirror.root / "mnist" / MNIST[0]).write_bytes(gzip.compress(b"another file"))
    (mirror.root / "cifar10" / "cifar-10-binary.tar.gz").write_bytes(b"another file")
    with pytest.raises(FormatError, match=rf"/mnist/{MNIST[0]} must have the checksum sha256:[0-9a-f]{{64}}; it has another, and was not kept"):  # fmt: skip # noqa: E501
        load_data("mnist")
    with pytest.raises(
        FormatError, match=r"cifar-10-binary.tar.gz must have the checksum md5:[0-9a-f]{32}; it has another"
    ):
        load_data("cifar10")
    assert not [path for path in mirror.cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize("kind", ["a member differs", "a member is missing", "no archive"])
def test_an_archive_of_other_files_is_refused_and_leaves_nothing(
    mirror: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    known, archive = mirror.files["cifar10"], mirror.root / "cifar10" / "cifar-10-binary.tar.gz"
    files, message = dict(known.source.files), "must hold '{}' with the SHA-256 {}; nothing of it was kept"
    if kind == "a member differs":
        files["test_batch.bin"] = "0" * 64
        message = message.format("test_batch.bin", "0" * 64)
    elif kind == "a member is missing":
        files["seventh.bin"] = "1" * 64
        message = message.format("seventh.bin", "1" * 64)
    else:
        archive.write_bytes(b"no archive")
        message = "is damaged: .*; nothing of it was kept"
    digest = f"md5:{hashlib.md5(archive.read_bytes()).hexdigest()}"
    source = replace(known.source, files=files, archive=(archive.name, digest))
    monkeypatch.setitem(data_module._FILES, "cifar10", replace(known, source=source))
    with pytest.raises(FormatError, match=message):
        load_data("cifar10")
    assert not [path for path in mirror.cache.rglob("*") if path.is_file()]


def test_missing_everywhere_names_the_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("TOPOGEN_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError) as caught:
        load_data("mnist", tmp_path / "empty")
    text = str(caught.value)
    assert text.startswith("The data set 'mnist' is not in ")
    for place in (
        "empty/mnist",
        "elsewhere/mnist",
        "cache/mnist",
        f"http://127.0.0.1:9/mnist/{MNIST[0]} (ConnectionError)",
    ):
        assert place in text


def test_the_next_mirror_is_asked(mirror: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    address = data_module.os.environ["TOPOGEN_MIRROR"]
    monkeypatch.delenv("TOPOGEN_MIRROR")
    known = mirror.files["mnist"]
    source = replace(known.source, mirrors=("http://127.0.0.1:9/mnist/", f"{address}mnist/"))
    monkeypatch.setitem(data_module._FILES, "mnist", replace(known, source=source))
    assert len(load_data("mnist").train_y) == 7


# ---- the real files


def test_real_mnist(data_dir: Path) -> None:
    mnist = load_data("mnist", data_dir)
    assert mnist.train_x.shape == (60000, 784)
    train = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    test = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(mnist.train_y).tolist() == train
    assert np.bincount(mnist.test_y).tolist() == test
    assert (mnist.train_x.min(), mnist.train_x.max()) == (0, 1)
    assert float(mnist.train_x.mean(dtype=np.float64)) == pytest.approx(0.1307, abs=5e-5)  # as published
    assert float(mnist.train_x.std(dtype=np.float64)) == pytest.approx(0.3081, abs=5e-5)


@pytest.mark.slow
def test_real_cifar10(data_dir: Path) -> None:
    cifar = load_data("cifar10", data_dir)
    assert cifar.train_x.shape == (50000, 3072)
    assert np.bincount(cifar.train_y).tolist() == [5000] * 10
    assert np.bincount(cifar.test_y).tolist() == [1000] * 10
    published = zip([0.4914, 0.48216, 0.44653], [0.24703, 0.24349, 0.26159], strict=True)
    darkest = cifar.train_x.reshape(-1, 3, 1024).min((0, 2))
    assert darkest == pytest.approx([-mean / std for mean, std in published], abs=2e-4)
