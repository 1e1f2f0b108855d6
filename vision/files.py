"""Image sets that lie in files: CIFAR in its binary version, the MNIST family as IDX files, a tree of image folders.

Sources:
    Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"; layout and checksums of the archives:
    https://www.cs.toronto.edu/~kriz/cifar.html.
    LeCun, Cortes and Burges, "The MNIST database of handwritten digits": the IDX format.
    Xiao, Rasul and Vollgraf 2017, "Fashion-MNIST", arXiv:1708.07747: the names of its classes.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
import urllib.request
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from faults import DataError, StorageError, check_range
from vision.data import Classes, ImageData

Bytes = NDArray[np.uint8]
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


@dataclass(frozen=True)
class Cifar10:
    """CIFAR-10: 50,000 + 10,000 colour images of 32 x 32 pixels in ten classes."""

    root: str = "data/cifar10"
    """The folder of `cifar-10-binary.tar.gz`, which is read as it is."""
    download: bool = False
    """Fetch the archive (162 MB) if it is not there."""
    url: str = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    md5: str = "c32a1d4ab5d03f1284b67883e8d87530"
    """Of the archive."""

    def load(self, seed: int) -> ImageData:
        """Reads everything; the makers' test set is marked."""
        train = [f"data_batch_{k}.bin" for k in range(1, 6)]
        return read_cifar(fetched(self), train, "test_batch.bin", "batches.meta.txt", labels=1)


@dataclass(frozen=True)
class Cifar100:
    """CIFAR-100: as CIFAR-10, in a hundred classes."""

    root: str = "data/cifar100"
    """The folder of `cifar-100-binary.tar.gz`, which is read as it is."""
    download: bool = False
    """Fetch the archive (161 MB) if it is not there."""
    url: str = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
    md5: str = "03b5dce01913d631647c71ecec9e9cb8"
    """Of the archive."""

    def load(self, seed: int) -> ImageData:
        """Reads everything, with the fine labels; the makers' test set is marked."""
        return read_cifar(fetched(self), ["train.bin"], "test.bin", "fine_label_names.txt", labels=2)


def fetched(options: Cifar10 | Cifar100) -> Path:
    """The archive, there and whole.

    Raises:
        DataError: if it is missing, cannot be downloaded or has another checksum.
    """
    path = Path(options.root) / options.url.rpartition("/")[2]
    if not path.exists():
        if not options.download:
            raise DataError(f"there is no {path}; fetch {options.url}, or set data.download=true")
        _download(options.url, path)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != options.md5:
        raise DataError(
            f"{path} is damaged: its MD5 checksum is {found}, not {options.md5}; delete it and fetch it again"
        )
    return path


def _download(url: str, path: Path) -> None:
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    except OSError as error:
        raise StorageError(f"cannot write {path.parent}: {error.strerror}") from None
    try:
        urllib.request.urlretrieve(url, part)
    except (OSError, ValueError, HTTPException) as error:
        part.unlink()
        raise DataError(f"cannot download {url} ({error}); fetch it elsewhere and put it into {path.parent}") from None
    os.replace(part, path)


def read_cifar(path: Path, train: list[str], test: str, names: str, labels: int) -> ImageData:
    """Reads an archive in the binary version.

    Args:
        path: the archive.
        train: its files of records for training.
        test: its file of records for testing.
        names: its file with the name of each class.
        labels: bytes before the 3,072 of an image; the last of them is the label.

    Raises:
        DataError: if a file is missing, cut off, or has a label without a name.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is not None:
                    found[Path(member.name).name] = content.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is no whole archive: {error}") from None
    for name in (*train, test, names):
        if name not in found:
            raise DataError(f"{path} has no {name}; is it the binary version?")
    size = labels + 3 * 32 * 32
    for name in (*train, test):
        if not found[name] or len(found[name]) % size:
            raise DataError(f"{path}: {name} has {len(found[name])} bytes, which are no records of {size}")
    records = np.frombuffer(b"".join(found[name] for name in (*train, test)), np.uint8).reshape(-1, size)
    held = torch.arange(len(records)) >= len(records) - len(found[test]) // size
    classes = found[names].decode().split()
    return labelled(records[:, labels:].reshape(-1, 3, 32, 32), records[:, labels - 1], classes, held, str(path))


def labelled(images: Bytes, label: Bytes, names: list[str], test: Tensor | None, where: str) -> ImageData:
    """A set with one label for each image, each image a group of its own.

    Raises:
        DataError: if a label has no name.
    """
    if label.max() >= len(names):
        raise DataError(f"{where}: label {label.max()} is there, but only {len(names)} classes")
    return ImageData(
        images=torch.from_numpy(np.array(images)),
        targets={"label": torch.from_numpy(label.astype(np.int64))},
        heads={"label": Classes(tuple(names))},
        group=torch.arange(len(images)),
        test=test,
    )


DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


@dataclass(frozen=True)
class Mnist:
    """Handwritten digits: 60,000 + 10,000 grey images of 28 x 28 pixels."""

    root: str = "data/mnist"
    """The folder of `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
    `t10k-labels-idx1-ubyte`, as they are or with `.gz`."""

    def load(self, seed: int) -> ImageData:
        """Reads everything; the makers' test set is marked."""
        return read_mnist(Path(self.root), DIGITS)


@dataclass(frozen=True)
class FashionMnist:
    """Clothes in the format of MNIST."""

    root: str = "data/fashion_mnist"
    """As that of MNIST."""

    def load(self, seed: int) -> ImageData:
        """Reads everything; the makers' test set is marked."""
        return read_mnist(Path(self.root), CLOTHES)


def read_mnist(root: Path, names: tuple[str, ...]) -> ImageData:
    """Reads the four files of a set in MNIST's format.

    Raises:
        DataError: if one is missing, cut off or does not fit the others.
    """
    images, label = [], []
    for part in ("train", "t10k"):
        images.append(read_idx(root / f"{part}-images-idx3-ubyte", 3))
        label.append(read_idx(root / f"{part}-labels-idx1-ubyte", 1))
        if len(images[-1]) != len(label[-1]):
            raise DataError(f"{root}: {part} has {len(images[-1])} images, but {len(label[-1])} labels")
    if images[0].shape[1:] != images[1].shape[1:]:
        raise DataError(f"{root}: images for training and for testing differ in size")
    test = torch.arange(sum(map(len, images))) >= len(images[0])
    return labelled(np.concatenate(images)[:, None], np.concatenate(label), list(names), test, str(root))


def read_idx(path: Path, axes: int) -> Bytes:
    """Reads one IDX file of bytes, compressed (`<path>.gz`) or not.

    Its first four bytes are 0, 0, 8 (for uint8) and the number of axes; then comes the length of each axis, in four
    bytes, most significant first; then the values.

    Raises:
        DataError: if it is missing, cut off or another format.
    """
    packed = path.with_name(path.name + ".gz")
    try:
        content = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    except FileNotFoundError:
        raise DataError(f"there is no {path}, nor {packed.name} beside it") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{packed} cannot be read: {error}") from None
    start = 4 + 4 * axes
    if len(content) < start or content[:4] != bytes([0, 0, 8, axes]):
        raise DataError(f"{path} is no IDX file of bytes with {axes} axes")
    shape = np.frombuffer(content[4:start], ">u4").astype(int).tolist()
    if len(content) != start + prod(shape) or not prod(shape):
        raise DataError(f"{path} has {len(content) - start} values, but announces {' x '.join(map(str, shape))}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


@dataclass(frozen=True)
class Folder:
    """A tree of image files: `<root>/<class>/<image>`, or `<root>/train/<class>/<image>` and `<root>/test/...`."""

    root: str = "data/images"
    size: int | None = None
    """Height and width to which every image is resized; null: they all have one size."""

    def __post_init__(self) -> None:
        if self.size is not None:
            check_range("data.size", self.size, 8, 4096)

    def load(self, seed: int) -> ImageData:
        """Reads every image, in the order of their names."""
        root = Path(self.root)
        parts = [root / "train", root / "test"]
        if not all(part.is_dir() for part in parts):
            return labelled(*read_tree(root, self.size), None, str(root))
        (images, label, names), (test_images, test_label, test_names) = (read_tree(p, self.size) for p in parts)
        if names != test_names:
            differ = sorted(set(names) ^ set(test_names))
            raise DataError(f"{root}: train and test have different classes: only one of them has {', '.join(differ)}")
        if images.shape[1:] != test_images.shape[1:]:
            raise DataError(f"{root}: images for training and for testing differ in size; set data.size")
        held = torch.arange(len(images) + len(test_images)) >= len(images)
        both = np.concatenate([images, test_images]), np.concatenate([label, test_label])
        return labelled(*both, names, held, str(root))


def read_tree(root: Path, size: int | None) -> tuple[Bytes, Bytes, list[str]]:
    """Images (M, 3, H, W), labels (M,) and class names of `<root>/<class>/<image>`.

    Raises:
        DataError: if there are no classes, a class has no images, or an image cannot be read or has another size.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}")
    classes = sorted(path for path in root.iterdir() if path.is_dir())
    if not classes:
        raise DataError(f"{root} is empty: it needs a folder of images for each class")
    if len(classes) > 256:
        raise DataError(f"{root} has {len(classes)} classes; 256 are the most")
    images, label = [], []
    for k, folder in enumerate(classes):
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        if not files:
            raise DataError(f"{folder} has no images ({' '.join(SUFFIXES)})")
        for path in files:
            images.append(read_image(path, size))
            label.append(k)
            if images[-1].shape != images[0].shape:
                height, width = images[-1].shape[1:]
                raise DataError(f"{path} has {height}x{width} pixels, unlike those before it; set data.size")
    return np.stack(images), np.array(label, np.uint8), [folder.name for folder in classes]


def read_image(path: Path, size: int | None) -> Bytes:
    """(3, H, W), resized to `size` x `size` if it is given.

    Raises:
        DataError: if it cannot be read.
    """
    from PIL import Image  # only here: the other sets do without

    try:
        with Image.open(path) as file:
            picture = file.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image: {' '.join(str(error).split())}") from None
    if size is not None:
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))
