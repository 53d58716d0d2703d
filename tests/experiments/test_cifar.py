"""CIFAR-10: both forms of its files, contrast normalisation and whitening."""

import json

import numpy as np
import pytest
from PIL import Image

from entropy_optax.experiments import cifar, data
from entropy_optax.experiments._idx import DataError

NAMES = (*cifar.TRAIN_FILES, cifar.TEST_FILE)
PER_FILE = 4


def make(seed=0):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (6, PER_FILE, 32, 32, 3), dtype=np.uint8)
    return images, generator.integers(0, 10, (6, PER_FILE), dtype=np.uint8)


def write_bins(folder, images, labels):
    folder.mkdir()
    for name, pixels, classes in zip(NAMES, images, labels, strict=True):
        records = b"".join(
            # Red, then green, then blue, each row by row.
            bytes([label]) + b"".join(image[..., c].tobytes() for c in range(3))
            for image, label in zip(pixels, classes, strict=True)
        )
        (folder / f"{name}.bin").write_bytes(records)


def write_pngs(folder, images, labels, mode="RGB"):
    folder.mkdir()
    shape = (-1, 1024, 3) if mode == "RGB" else (-1, 3072)
    for name, pixels in zip(NAMES, images, strict=True):
        Image.fromarray(pixels.reshape(shape)).save(folder / f"{name}.png")
    for name, part in (("train", labels[:5]), ("test", labels[5:])):
        text = json.dumps(part.ravel().tolist())
        (folder / f"{name}_labels.json").write_text(text)


def write_grey_pngs(folder, images, labels):
    write_pngs(folder, images, labels, mode="L")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTROPY_OPTAX_DATA", str(tmp_path))
    return tmp_path / "cifar10"


@pytest.mark.parametrize("write", [write_bins, write_pngs, write_grey_pngs])
def test_reads_both_forms(folder, write):
    images, labels = make()
    write(folder, images, labels)
    train_images, train_labels, test_images, test_labels = cifar.read_cifar10(folder)
    np.testing.assert_array_equal(train_images, np.concatenate(images[:5]))
    np.testing.assert_array_equal(train_labels, labels[:5].ravel())
    np.testing.assert_array_equal(test_images, images[5])
    np.testing.assert_array_equal(test_labels, labels[5])
    assert train_images.dtype == test_images.dtype == np.uint8
    assert train_labels.dtype == test_labels.dtype == np.int32


def test_names_what_is_missing(folder):
    with pytest.raises(DataError, match=r"cifar10: found neither data_batch_1\.bin"):
        cifar.read_cifar10(folder)
    write_bins(folder, *make())
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin: cannot be read"):
        cifar.read_cifar10(folder)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda good: good[:-1], "found 12291 bytes, expected a multiple of 3073"),
        (lambda good: b"", "found 0 bytes, expected a multiple"),
        (lambda good: b"\x0a" + good[1:], "found the label 10, expected .* 0 to 9"),
    ],
)
def test_damage_of_binary_files_is_named(folder, damage, found):
    write_bins(folder, *make())
    path = folder / "test_batch.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"test_batch\.bin: {found}"):
        cifar.read_cifar10(folder)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_bytes(b"nothing"), "cannot be read .* complete PNG"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-2000]),
            "cannot be read .* complete PNG",
        ),
        (
            lambda path: path.write_bytes(path.read_bytes()[:20]),
            "cannot be read .* complete PNG",
        ),
        (
            lambda path: Image.new("RGB", (1023, 4)).save(path),
            "found rows of 1023 pixels of mode RGB, expected",
        ),
        (
            lambda path: Image.new("L", (1024, 4)).save(path),
            "found rows of 1024 pixels of mode L, expected",
        ),
        (
            lambda path: Image.new("P", (3072, 4)).save(path),
            "found rows of 3072 pixels of mode P, expected",
        ),
    ],
)
def test_damage_of_pngs_is_named(folder, damage, found):
    write_pngs(folder, *make())
    damage(folder / "data_batch_2.png")
    with pytest.raises(DataError, match=rf"data_batch_2\.png: {found}"):
        cifar.read_cifar10(folder)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[0, 1", "found no JSON"),
        ("\udcff", "found no JSON"),
        ('{"a": 1}', "found something else, expected a list of integers"),
        ("[0, 1.5, 2, 3]", "found something else, expected a list of integers"),
        ("[0, true, 2, 3]", "found something else, expected a list of integers"),
        ("[0, 1, 2]", "found 3 labels, expected 4"),
        ("[0, 1, 2, -1]", "found the label -1, expected labels from 0 to 9"),
    ],
)
def test_damage_of_labels_is_named(folder, text, found):
    write_pngs(folder, *make())
    path = folder / "test_labels.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=rf"test_labels\.json: {found}"):
        cifar.read_cifar10(folder)


def test_contrast_normalisation():
    images, _ = make()
    images = images[0].copy()
    images[1] = 77
    got = cifar.global_contrast_normalise(images)
    assert got.dtype == np.float32
    assert got.shape == images.shape
    assert not got[1].any()
    rest = np.delete(got, 1, axis=0).astype(np.float64)
    np.testing.assert_allclose(rest.mean((1, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(rest.std((1, 2, 3)), 1, atol=1e-6)
    # Contrast and brightness are gone: what is left is the same.
    dimmed = images.astype(np.float32) * 0.25 + 3
    np.testing.assert_allclose(cifar.global_contrast_normalise(dimmed), got, atol=1e-5)
    assert not cifar.global_contrast_normalise(np.full((1, 8, 8, 3), 0.1)).any()


def correlated(num, seed=0):
    """Images of 4 x 4 x 3 whose pixels depend on one another."""
    generator = np.random.default_rng(seed)
    mix = np.random.default_rng(9).normal(size=(48, 48)) + 2 * np.eye(48)
    flat = generator.normal(size=(num, 48)) @ mix + 5
    return flat.reshape(num, 4, 4, 3).astype(np.float32)


def covariance(images):
    flat = images.reshape(len(images), -1).astype(np.float64)
    flat = flat - flat.mean(0)
    return flat.T @ flat / len(flat)


def test_whitened_images_have_the_identity_as_covariance():
    images = correlated(2_000)
    mean, matrix = cifar.fit_zca(images, epsilon=1e-7)
    assert mean.dtype == matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, matrix.T)
    whitened = cifar.apply_zca(images, mean, matrix)
    assert whitened.shape == images.shape
    assert whitened.dtype == np.float32
    np.testing.assert_allclose(whitened.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(covariance(whitened), np.eye(48), atol=1e-2)


def test_epsilon_does_what_is_said():
    images, epsilon = correlated(500), 3.0
    c = covariance(images)
    mean, matrix = cifar.fit_zca(images, epsilon)
    # The inverse square root: W W (C + epsilon I) = I.
    np.testing.assert_allclose(
        matrix @ matrix @ (c + epsilon * np.eye(48)), np.eye(48), atol=1e-3
    )
    assert np.linalg.eigvalsh(matrix).min() > 0
    np.testing.assert_allclose(
        covariance(cifar.apply_zca(images, mean, matrix)),
        c @ np.linalg.inv(c + epsilon * np.eye(48)),
        atol=1e-3,
    )
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="epsilon: got"):
            cifar.fit_zca(images, wrong)


def test_fewer_images_than_pixels_are_whitened_too():
    images = correlated(10)
    mean, matrix = cifar.fit_zca(images)
    assert np.isfinite(matrix).all()
    whitened = cifar.apply_zca(images, mean, matrix)
    assert np.linalg.eigvalsh(covariance(whitened)).max() < 1 + 1e-4


def test_whitening_is_fitted_on_the_first_split_alone():
    train, test = correlated(100), correlated(30, seed=1)
    whitened = cifar.preprocess([train, test])
    again = cifar.preprocess([train, test[:5]])
    np.testing.assert_array_equal(whitened[0], again[0])
    np.testing.assert_allclose(whitened[1][:5], again[1], atol=1e-4)
    np.testing.assert_allclose(whitened[0].mean(0), 0, atol=1e-4)
    assert np.abs(whitened[1].mean(0)).max() > 1e-2


def test_loads_by_its_name(folder):
    images, labels = make()
    write_bins(folder, images, labels)
    loaded = data.load("cifar10", num_train=12, pool=4)
    assert loaded.num_classes == 10
    assert [s.images.shape for s in loaded[2:]] == [
        (n, 8, 8, 3) for n in (12, PER_FILE, PER_FILE)
    ]
    assert all(s.images.dtype == np.float32 for s in loaded[2:])
    assert loaded.train.labels.tolist() == labels.ravel()[:12].tolist()
    assert loaded.validation.labels.tolist() == labels[4].tolist()
    assert loaded.test.labels.tolist() == labels[5].tolist()
    # Averaged, then normalised, then whitened by the training images that are left.
    pooled = images.reshape(24, 8, 4, 8, 4, 3).mean((2, 4))
    expected = cifar.preprocess([pooled[:12], pooled[16:20], pooled[20:]])
    for split, pixels in zip(loaded[2:], expected, strict=True):
        np.testing.assert_allclose(split.images, pixels, atol=1e-3)
