"""Files written here in the true formats, byte by byte, and everything that can be wrong with them."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from faults import DataError
from vision.data import ImageData, load, split

PER_FILE = 3


def cifar_records(rng: np.random.Generator, labels: list[list[int]]) -> tuple[bytes, np.ndarray]:
    """Records of the binary version: label bytes, then 1,024 red, 1,024 green and 1,024 blue bytes, row by row."""
    pixels = rng.integers(256, size=(len(labels), 32, 32, 3), dtype=np.uint8)  # as a picture: row, column, colour
    content = b""
    for label, picture in zip(labels, pixels, strict=True):
        content += bytes(label) + b"".join(picture[:, :, colour].tobytes() for colour in range(3))
    return content, pixels


def write_tar(path: Path, files: dict[str, bytes]) -> str:
    """Writes an archive; returns its MD5 checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


def cifar10_files(rng: np.random.Generator) -> tuple[dict[str, bytes], np.ndarray, list[int]]:
    files, pixels, labels = {}, [], []
    for name in (*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"):
        drawn = rng.integers(10, size=PER_FILE).tolist()
        content, picture = cifar_records(rng, [[label] for label in drawn])
        files[f"cifar-10-batches-bin/{name}"] = content
        pixels.append(picture)
        labels += drawn
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    files["cifar-10-batches-bin/batches.meta.txt"] = ("\n".join(names) + "\n\n").encode()
    return files, np.concatenate(pixels), labels


def load_cifar10(root: Path, files: dict[str, bytes], **more: Any) -> ImageData:
    md5 = write_tar(root / "cifar-10-binary.tar.gz", files)
    return load("cifar10", {"root": str(root), "md5": md5} | more)


def test_cifar10(tmp_path: Path) -> None:
    files, pixels, labels = cifar10_files(np.random.default_rng(0))
    data = load_cifar10(tmp_path, files)
    assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), pixels)
    assert data.targets["label"].tolist() == labels
    assert data.heads["label"].names[3] == "cat"
    assert data.test is not None
    assert data.test.tolist() == [False] * 15 + [True] * 3
    assert len(split(data, [0.8, 0.1, 0.1], 0)[2]) == 3


def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = {
        "cifar-100-binary/fine_label_names.txt": "\n".join(f"fine{k}" for k in range(100)).encode(),
        "cifar-100-binary/coarse_label_names.txt": b"coarse0\ncoarse1",
    }
    for name, labels in (("train.bin", [[1, 99], [0, 7]]), ("test.bin", [[0, 42]])):
        files[f"cifar-100-binary/{name}"], _ = cifar_records(rng, labels)
    md5 = write_tar(tmp_path / "cifar-100-binary.tar.gz", files)
    data = load("cifar100", {"root": str(tmp_path), "md5": md5})
    assert data.targets["label"].tolist() == [99, 7, 42]
    assert data.heads["label"].names[99] == "fine99"
    assert data.test is not None
    assert data.test.tolist() == [False, False, True]


def test_a_bad_cifar_archive_is_one_line(tmp_path: Path) -> None:
    files, _, _ = cifar10_files(np.random.default_rng(0))
    archive = tmp_path / "cifar-10-binary.tar.gz"
    with pytest.raises(DataError, match=r"there is no .*cifar-10-binary.tar.gz; fetch .* or set data.download=true"):
        load("cifar10", {"root": str(tmp_path)})
    write_tar(archive, files)
    with pytest.raises(DataError, match=r"MD5 checksum is .* not c32a1d4ab5d03f1284b67883e8d87530"):
        load("cifar10", {"root": str(tmp_path)})
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="no whole archive"):
        load("cifar10", {"root": str(tmp_path), "md5": hashlib.md5(archive.read_bytes()).hexdigest()})
    first = "cifar-10-batches-bin/data_batch_1.bin"
    with pytest.raises(DataError, match=r"data_batch_1.bin has 9218 bytes, which are no records of 3073"):
        load_cifar10(tmp_path, files | {first: files[first][:-1]})
    with pytest.raises(DataError, match="label 10 is there, but only 10 classes"):
        load_cifar10(tmp_path, files | {first: bytes([10]) + files[first][1:]})
    del files["cifar-10-batches-bin/test_batch.bin"]
    with pytest.raises(DataError, match=r"has no test_batch.bin; is it the binary version"):
        load_cifar10(tmp_path, files)


def test_a_download_is_verified_and_fails_in_one_line(tmp_path: Path) -> None:
    files, _, labels = cifar10_files(np.random.default_rng(0))
    served = tmp_path / "server" / "cifar-10-binary.tar.gz"
    options = {"root": str(tmp_path / "here"), "download": True, "url": served.as_uri()}
    with pytest.raises(DataError, match=r"cannot download file:.* fetch it elsewhere and put it into"):
        load("cifar10", options)
    assert not list((tmp_path / "here").iterdir())
    md5 = write_tar(served, files)
    with pytest.raises(DataError, match="MD5"):
        load("cifar10", options)
    data = load("cifar10", options | {"md5": md5})
    assert data.targets["label"].tolist() == labels


def idx(array: np.ndarray) -> bytes:
    """The format of the MNIST files: magic number, sizes with the most significant byte first, values."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return head + array.astype(np.uint8).tobytes()


def write_mnist(root: Path, packed: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 300), ("t10k", 7)):
        arrays[f"{part}-images-idx3-ubyte"] = rng.integers(256, size=(count, 28, 28))
        arrays[f"{part}-labels-idx1-ubyte"] = rng.integers(10, size=count)
    for name, array in arrays.items():
        if packed:
            (root / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (root / name).write_bytes(idx(array))
    return arrays


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files(tmp_path: Path, name: str, packed: bool) -> None:
    arrays = write_mnist(tmp_path, packed)
    data = load(name, {"root": str(tmp_path)})
    assert data.images.shape == (307, 1, 28, 28)
    assert np.array_equal(data.images[:300, 0].numpy(), arrays["train-images-idx3-ubyte"])
    assert data.targets["label"][300:].tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()
    assert data.test is not None
    assert int(data.test.sum()) == 7
    assert data.heads["label"].names[9] == ("9" if name == "mnist" else "ankle boot")


def test_a_bad_idx_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no .*train-images-idx3-ubyte, nor .*\.gz beside it"):
        load("mnist", {"root": str(tmp_path)})
    arrays = write_mnist(tmp_path, False)
    path = tmp_path / "train-labels-idx1-ubyte"
    for content, message in (
        (idx(np.zeros(300))[:-1], "has 299 values, but announces 300"),
        (b"", "is no IDX file of bytes with 1 axes"),
        (idx(np.zeros((300, 1))), "is no IDX file of bytes with 1 axes"),
        (idx(np.zeros(299)), "train has 300 images, but 299 labels"),
        (idx(np.full(300, 10)), "label 10 is there, but only 10 classes"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            load("mnist", {"root": str(tmp_path)})
    path.unlink()
    packed = gzip.compress(idx(arrays[path.name]))
    path.with_name(path.name + ".gz").write_bytes(packed[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        load("mnist", {"root": str(tmp_path)})


def draw(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (12, 9)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_a_folder_of_images(tmp_path: Path) -> None:
    draw(tmp_path / "dog" / "b.png", (1, 2, 3))
    draw(tmp_path / "dog" / "a.png", (4, 5, 6))
    draw(tmp_path / "cat" / "z.bmp", (7, 8, 9))
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    Image.new("L", (12, 9), 50).save(tmp_path / "cat" / "grey.png")
    data = load("folder", {"root": str(tmp_path)})
    assert data.heads["label"].names == ("cat", "dog")
    assert data.targets["label"].tolist() == [0, 0, 1, 1]
    assert data.images.shape == (4, 3, 9, 12)
    assert data.images[:, :, 4, 6].tolist() == [[50, 50, 50], [7, 8, 9], [4, 5, 6], [1, 2, 3]]
    assert data.test is None
    assert load("folder", {"root": str(tmp_path), "size": 16}).images.shape == (4, 3, 16, 16)


def test_train_and_test_folders(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("a", "b"):
            draw(tmp_path / part / name / "1.png", (9, 9, 9))
    data = load("folder", {"root": str(tmp_path)})
    assert data.test is not None
    assert data.test.tolist() == [False, False, True, True]
    draw(tmp_path / "test" / "c" / "1.png", (9, 9, 9))
    with pytest.raises(DataError, match="different classes: only one of them has c"):
        load("folder", {"root": str(tmp_path)})


def test_a_bad_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        load("folder", {"root": str(tmp_path / "nowhere")})
    with pytest.raises(DataError, match="is empty"):
        load("folder", {"root": str(tmp_path)})
    draw(tmp_path / "a" / "1.png", (0, 0, 0))
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="b has no images"):
        load("folder", {"root": str(tmp_path)})
    draw(tmp_path / "b" / "1.png", (0, 0, 0), size=(10, 9))
    with pytest.raises(DataError, match=r"has 9x10 pixels, unlike those before it; set data.size"):
        load("folder", {"root": str(tmp_path)})
    whole = (tmp_path / "a" / "1.png").read_bytes()
    for content in (b"", b"no image at all", whole[: len(whole) // 2]):
        (tmp_path / "b" / "1.png").write_bytes(content)
        with pytest.raises(DataError, match=r"1.png cannot be read as an image") as caught:
            load("folder", {"root": str(tmp_path)})
        assert "\n" not in str(caught.value)
