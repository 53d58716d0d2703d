"""Data sets by name, split into training, validation and test examples.

`mnist-10k` ships with the package. `mnist`, `cifar10` and any other idx data set come
from the folder that the environment variable `ENTROPY_OPTAX_DATA` names.
"""

import hashlib
import importlib.util
import os
import pathlib
from typing import NamedTuple

import numpy as np

from entropy_optax.experiments import cifar
from entropy_optax.experiments._idx import DataError, read_pair
from entropy_optax.experiments._variants import mislabel, pool_blocks

DATA_VARIABLE = "ENTROPY_OPTAX_DATA"
SHIPPED = pathlib.Path(__file__).parent / "_data"
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_NUM_CLASSES = {"mnist": 10, "mnist-10k": 10, "cifar10": cifar.NUM_CLASSES}
# What the optional loader is asked for.
_FETCHED = ("mnist", "cifar10")


class Split(NamedTuple):
    """Examples of one split.

    Attributes:
      images: `[n, height, width, channels]`, float32, scaled as
        `(pixel - 126) / 126`; those of `cifar10` have their contrast normalised and
        are whitened.
      labels: `[n]`, int32.
    """

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """A data set and its three disjoint splits.

    Attributes:
      name: the name it was loaded by.
      num_classes: number of classes; labels are below it.
      train: examples to take gradients on; some of their labels are wrong if
        `label_noise` was asked for.
      validation: examples held out from the training file, to choose by.
      test: examples of the test file, to report on.
    """

    name: str
    num_classes: int
    train: Split
    validation: Split
    test: Split


def load(
    name: str, *, num_train: int | None = None, label_noise: float = 0.0, pool: int = 1
) -> Dataset:
    """Loads a data set by name.

    The last fifth of the training file, 10,000 examples at most, is held out for
    validation: 2,000 of `mnist-10k`'s 10,000 and 10,000 of MNIST's 60,000. The test
    file is never split. Validation and test examples are the same whatever
    `num_train` and `label_noise` are, but for `cifar10`'s whitening, which is fitted
    on the training examples that are left.

    Args:
      name: `"mnist-10k"` (shipped), `"mnist"`, `"cifar10"`, or a folder of idx files in
        `$ENTROPY_OPTAX_DATA`.
      num_train: how many training examples to keep, the first ones; None keeps all.
      label_noise: share of the training labels, in [0, 1), to replace by a wrong one,
        drawn from the other classes: always the same ones, and those of a smaller
        share are among those of a larger.
      pool: side of the blocks of pixels to average; 2 makes 14 x 14 of 28 x 28 pixels.

    Returns:
      The data set.

    Raises:
      DataError: if files are missing or damaged, or an argument does not fit them; the
        message says which, and what to do about it.
    """
    if name == "mnist-10k":
        _verify_checksums(SHIPPED)
        train, test = _read_folder(SHIPPED)
    else:
        train, test = _find(name)
    num_classes = _check(name, train, test)
    train, validation = _hold_out(name, train, num_train)
    train = train._replace(labels=mislabel(train.labels, label_noise, num_classes))
    splits = [train, validation, test]
    if name == "cifar10":
        images = cifar.preprocess([pool_blocks(split.images, pool) for split in splits])
    else:
        images = [pool_blocks(_scale(split.images), pool) for split in splits]
    train, validation, test = (
        Split(pixels, split.labels.astype(np.int32))
        for pixels, split in zip(images, splits, strict=True)
    )
    return Dataset(name, num_classes, train, validation, test)


def num_validation(num_training_images: int) -> int:
    """Size of the validation split, the last examples of the training file.

    Args:
      num_training_images: number of images in the training file.

    Returns:
      A fifth of them, 10,000 at most.
    """
    return min(10_000, num_training_images // 5)


def _find(name: str) -> tuple[Split, Split]:
    root = os.environ.get(DATA_VARIABLE)
    if name != pathlib.PurePath(name).name or name in ("", ".", ".."):
        raise DataError(f"data: {name!r} is not the name of a data set")
    if root and (pathlib.Path(root) / name).is_dir():
        folder = pathlib.Path(root) / name
        return _read_cifar10(folder) if name == "cifar10" else _read_folder(folder)
    if name in _FETCHED and importlib.util.find_spec("tensorflow_datasets"):
        return _load_tfds(name)
    looked = f"{pathlib.Path(root) / name} does not exist" if root else "it is not set"
    files = "idx files " + ", ".join(
        f"{n}[.gz]" for pair in _FILES.values() for n in pair
    )
    if name == "cifar10":
        names = ", ".join(f"{n}.bin" for n in (*cifar.TRAIN_FILES, cifar.TEST_FILE))
        files = f"files of the binary version {names}"
    way_out = (
        f"Either put the {files} into a folder {name}/ and set"
        f" {DATA_VARIABLE} to the folder that holds {name}/"
    )
    if name in _FETCHED:
        way_out += (
            ", or install the optional loader with `pip install 'entropy-optax[tfds]'`"
        )
    raise DataError(
        f"data: no data set {name!r} in ${DATA_VARIABLE} ({looked}). {way_out}."
        " The data set 'mnist-10k' needs neither."
    )


def _read_folder(folder: pathlib.Path) -> tuple[Split, Split]:
    splits = []
    for images_name, labels_name in _FILES.values():
        paths = [_existing(folder / images_name), _existing(folder / labels_name)]
        images, labels = read_pair(*paths)
        splits.append(Split(images[..., None], labels))
    return splits[0], splits[1]


def _read_cifar10(folder: pathlib.Path) -> tuple[Split, Split]:
    train_images, train_labels, test_images, test_labels = cifar.read_cifar10(folder)
    return Split(train_images, train_labels), Split(test_images, test_labels)


def _existing(path: pathlib.Path) -> pathlib.Path:
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    raise DataError(f"{path}: found neither this file nor {path.name}.gz beside it")


def _verify_checksums(folder: pathlib.Path) -> None:
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        expected, name = line.split()
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path}: not found, expected a shipped data file")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != expected:
            raise DataError(f"{path}: found SHA-256 {found}, expected {expected}")


def _load_tfds(name: str) -> tuple[Split, Split]:
    # Imported here: it is optional, heavy, and fetches what it does not have.
    import tensorflow_datasets as tfds  # pyright: ignore[reportMissingImports]  # an extra

    splits = tfds.as_numpy(
        tfds.load(name, split=["train", "test"], batch_size=-1, as_supervised=True)
    )
    train, test = (
        Split(np.asarray(images), np.asarray(labels)) for images, labels in splits
    )
    return train, test


def _check(name: str, train: Split, test: Split) -> int:
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"data {name!r}: found test images of {test.images.shape[1:3]} pixels,"
            f" expected {train.images.shape[1:3]} as in training"
        )
    num_classes = _NUM_CLASSES.get(name, int(train.labels.max()) + 1)
    for which, split in (("training", train), ("test", test)):
        if split.labels.max() >= num_classes:
            raise DataError(
                f"data {name!r}: found the label {split.labels.max()} among the"
                f" {which} labels, expected labels below {num_classes}"
            )
    return num_classes


def _hold_out(name: str, whole: Split, num_train: int | None) -> tuple[Split, Split]:
    held_out = num_validation(len(whole.images))
    if held_out < 1:
        raise DataError(
            f"data {name!r}: found {len(whole.images)} training images, expected at"
            " least 5, so that one can be held out"
        )
    left = len(whole.images) - held_out
    num_train = left if num_train is None else num_train
    if not 1 <= num_train <= left:
        raise DataError(
            f"num_train: got {num_train}, expected 1 to {left}, the training images"
            f" that {name!r} has beside {held_out} held out for validation"
        )
    return Split(*(a[:num_train] for a in whole)), Split(*(a[left:] for a in whole))


def _scale(images: np.ndarray) -> np.ndarray:
    # The paper's scaling; it leaves background pixels at exactly -1.
    return (images.astype(np.float32) - 126) / 126
