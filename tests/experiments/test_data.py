"""Data sets: what is read is right, and what is wrong is named."""

import gzip
import hashlib
import re
import subprocess
import sys
import types

import numpy as np
import pytest

from entropy_optax.experiments import data
from entropy_optax.experiments._idx import DataError, read_idx, read_pair

IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def test_reads_raw_and_compressed(tmp_path, make_idx):
    for name, content in (
        ("raw", make_idx(IMAGES)),
        ("compressed", gzip.compress(make_idx(IMAGES))),
    ):
        (tmp_path / name).write_bytes(content)
        np.testing.assert_array_equal(read_idx(tmp_path / name, ndim=3), IMAGES)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda good: b"", "found 0 bytes, expected an idx header"),
        (
            lambda good: b"\x89PNG" + good[4:],
            "magic number 0x89504e47, expected 0x0000",
        ),
        (lambda good: good[:2] + b"\x0d" + good[3:], "type code 0x0d, expected 0x08"),
        (lambda good: good[:3] + b"\x01" + good[4:], "found 1 dimensions, expected 3"),
        (lambda good: good[:9], "found 9 bytes, expected a header of 16"),
        (lambda good: good[:-1], r"found 39 bytes, expected 40 .*\(2, 3, 4\)"),
        (lambda good: good + b"\0", r"found 41 bytes, expected 40 .*\(2, 3, 4\)"),
        (lambda good: good[:4] + bytes(4) + good[8:], r"empty array of shape \(0, 3"),
        (lambda good: good[:4] + b"\xff" * 12 + good[16:], "found 40 bytes, expected"),
        (lambda good: gzip.compress(good)[:-6], "damaged gzip stream"),
        (lambda good: gzip.compress(good)[:12] + b"garbage", "damaged gzip stream"),
        (lambda good: b"\x1f\x8b" + good, "damaged gzip stream"),
    ],
)
def test_damage_is_named(tmp_path, make_idx, damage, found):
    path = tmp_path / "some-images"
    path.write_bytes(damage(make_idx(IMAGES)))
    with pytest.raises(DataError, match=f"some-images: .*{found}"):
        read_idx(path, ndim=3)


def test_missing_file_and_unequal_counts(tmp_path, make_idx):
    with pytest.raises(DataError, match="nowhere: cannot be read"):
        read_idx(tmp_path / "nowhere", ndim=3)
    (tmp_path / "images").write_bytes(make_idx(IMAGES))
    (tmp_path / "labels").write_bytes(make_idx(np.zeros(3, np.uint8)))
    with pytest.raises(DataError, match="labels: found 3 labels, expected 2"):
        read_pair(tmp_path / "images", tmp_path / "labels")


def test_errors_are_value_errors():
    assert issubclass(DataError, ValueError)


def test_shipped_files_match_their_checksums_and_are_small():
    lines = (data.SHIPPED / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in map(str.split, lines)}
    files = sorted(data.SHIPPED.glob("*.gz"))
    assert sorted(listed) == [path.name for path in files]
    for path in files:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == listed[path.name]
        assert path.stat().st_size < 4_000_000
        assert path.read_bytes()[4:8] == bytes(4)  # gzip's time: reproducible


def test_shipped_data_have_their_notice():
    notice = (data.SHIPPED / "NOTICE").read_text()
    for words in (
        "Yann LeCun, Corinna Cortes, Christopher J.C. Burges",
        "https://creativecommons.org/licenses/by-sa/3.0/",
        "first 10,000",
    ):
        assert words in notice


def test_mnist_10k():
    loaded = data.load("mnist-10k")
    assert loaded.num_classes == 10
    assert [len(s.labels) for s in loaded[2:]] == [8_000, 2_000, 10_000]
    for split in loaded[2:]:
        assert split.images.shape == (len(split.labels), 28, 28, 1)
        assert split.images.dtype == np.float32
        assert split.labels.dtype == np.int32
        # The paper's scaling, (x - 126) / 126, of the bytes 0 and 255.
        assert split.images.min() == -1
        assert split.images.max() == np.float32(129) / 126
        assert set(np.unique(split.labels)) == set(range(10))
    # MNIST starts with 5, 0, 4, 1, 9 in training and 7, 2, 1, 0, 4 in the test file.
    assert loaded.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert loaded.test.labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_damaged_shipped_file_is_not_trained_on(tmp_path, monkeypatch):
    for path in data.SHIPPED.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    content = bytearray(labels.read_bytes())
    content[100] ^= 1
    labels.write_bytes(content)
    monkeypatch.setattr(data, "SHIPPED", tmp_path)
    with pytest.raises(DataError, match=r"train-labels.*found SHA-256 .*expected"):
        data.load("mnist-10k")
    labels.unlink()
    with pytest.raises(DataError, match=r"train-labels.*not found"):
        data.load("mnist-10k")


@pytest.mark.parametrize("compress", [False, True])
def test_any_idx_folder_loads_by_its_name(tmp_path, monkeypatch, make_tiny, compress):
    make_tiny(tmp_path / "digits", compress=compress)
    monkeypatch.setenv("ENTROPY_OPTAX_DATA", str(tmp_path))
    loaded = data.load("digits")
    assert loaded.num_classes == 4
    assert [len(s.labels) for s in loaded[2:]] == [48, 12, 30]


def test_splits_are_disjoint_and_in_order(data_folder):
    whole, labels = read_pair(
        data_folder / "tiny" / "train-images-idx3-ubyte",
        data_folder / "tiny" / "train-labels-idx1-ubyte",
    )
    loaded = data.load("tiny")
    # Every training image is in exactly one of the two, the last fifth held out.
    joined = np.concatenate([loaded.train.images, loaded.validation.images])
    np.testing.assert_allclose(joined[..., 0] * 126 + 126, whole, atol=1e-4)
    np.testing.assert_array_equal(
        np.concatenate([loaded.train.labels, loaded.validation.labels]), labels
    )
    assert len(np.unique(whole, axis=0)) == 60


def test_size_of_the_validation_split():
    assert data.num_validation(10_000) == 2_000
    assert data.num_validation(60_000) == 10_000
    assert data.num_validation(1_000_000) == 10_000


def test_wrong_shapes_and_labels_in_a_folder(data_folder, make_idx):
    folder = data_folder / "tiny"
    labels = folder / "t10k-labels-idx1-ubyte"
    labels.write_bytes(make_idx(np.full(30, 4, np.uint8)))
    with pytest.raises(DataError, match=r"'tiny'.*label 4 .*test labels.*below 4"):
        data.load("tiny")
    images = folder / "t10k-images-idx3-ubyte"
    images.write_bytes(make_idx(np.zeros((30, 9, 9), np.uint8)))
    with pytest.raises(DataError, match=r"'tiny'.*\(9, 9\) pixels, expected \(8, 8\)"):
        data.load("tiny")
    images.unlink()
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte: found neither"):
        data.load("tiny")


def test_mnist_labels_are_digits(data_folder, make_idx):
    (data_folder / "tiny").rename(data_folder / "mnist")
    path = data_folder / "mnist" / "train-labels-idx1-ubyte"
    path.write_bytes(make_idx(np.full(60, 10, np.uint8)))
    with pytest.raises(DataError, match=r"label 10 among the training.*below 10"):
        data.load("mnist")


@pytest.mark.parametrize("variable", [None, "/nowhere"])
def test_missing_mnist_says_what_to_do(monkeypatch, variable):
    monkeypatch.delenv("ENTROPY_OPTAX_DATA", raising=False)
    if variable:
        monkeypatch.setenv("ENTROPY_OPTAX_DATA", variable)
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError) as caught:
        data.load("mnist")
    for words in (
        "ENTROPY_OPTAX_DATA",
        "train-images-idx3-ubyte[.gz]",
        "t10k-labels-idx1-ubyte[.gz]",
        "pip install 'entropy-optax[tfds]'",
        "mnist-10k",
    ):
        assert words in str(caught.value)
    with pytest.raises(DataError, match=re.escape("ENTROPY_OPTAX_DATA")):
        data.load("fashion")


@pytest.mark.parametrize("name", ["", "..", "../tiny", "tiny/.."])
def test_a_name_is_no_path(data_folder, name):
    with pytest.raises(DataError, match="not the name of a data set"):
        data.load(name)


@pytest.mark.parametrize(
    ("name", "shape"), [("mnist", (28, 28, 1)), ("cifar10", (32, 32, 3))]
)
def test_through_tensorflow_datasets(monkeypatch, name, shape):
    asked = {}

    def tfds_load(name, **options):
        asked.update(options, name=name)
        images = np.full((10, *shape), 126, np.uint8)
        return [(images, np.arange(10))] * 2

    fake = types.ModuleType("tensorflow_datasets")
    vars(fake).update(load=tfds_load, as_numpy=lambda tree: tree)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: fake)
    monkeypatch.delenv("ENTROPY_OPTAX_DATA", raising=False)
    loaded = data.load(name, pool=shape[0] // 4)
    assert asked["name"] == name
    assert loaded.train.images.shape == (8, 4, 4, shape[2])
    assert loaded.train.labels.dtype == np.int32
    assert not loaded.train.images.any()


def test_missing_cifar_says_what_to_do(monkeypatch):
    monkeypatch.delenv("ENTROPY_OPTAX_DATA", raising=False)
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError) as caught:
        data.load("cifar10")
    for words in ("data_batch_1.bin", "test_batch.bin", "folder cifar10/", "[tfds]"):
        assert words in str(caught.value)


def test_importing_reads_and_loads_nothing():
    # No data library, and no file of the data folder, before something is asked for.
    program = (
        "import sys\n"
        "opened = []\n"
        "hook = lambda event, args: event == 'open' and opened.append(str(args[0]))\n"
        "sys.addaudithook(hook)\n"
        "import entropy_optax.experiments.data\n"
        "import entropy_optax.experiments.text\n"
        "assert not {'tensorflow_datasets', 'PIL'} & set(sys.modules)\n"
        "assert not [path for path in opened if '-ubyte' in path]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
