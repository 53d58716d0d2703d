"""Data sets by name, split into training, validation and test examples.

`mnist-10k` ships with the package. `mnist` and any other idx data set come from the
folder that the environment variable `ENTROPY_OPTAX_DATA` names.
"""

import hashlib
import importlib.util
import os
import pathlib
from typing import NamedTuple

import numpy as np

from entropy_optax.experiments._idx import DataError, read_pair

DATA_VARIABLE = "ENTROPY_OPTAX_DATA"
SHIPPED = pathlib.Path(__file__).parent / "_data"
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_NUM_CLASSES = {"mnist": 10, "mnist-10k": 10}


class Split(NamedTuple):
    """Examples of one split.

    Attributes:
      images: `[n, height, width, 1]`, float32, scaled as `(pixel - 126) / 126`.
      labels: `[n]`, int32.
    """

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """A data set and its three disjoint splits.

    Attributes:
      name: the name it was loaded by.
      num_classes: number of classes; labels are below it.
      train: examples to take gradients on.
      validation: examples held out from the training file, to choose by.
      test: examples of the test file, to report on.
    """

    name: str
    num_classes: int
    train: Split
    validation: Split
    test: Split


def load(name: str) -> Dataset:
    """Loads a data set by name.

    The last fifth of the training file, 10,000 examples at most, is held out for
    validation: 2,000 of `mnist-10k`'s 10,000 and 10,000 of MNIST's 60,000. The test
    file is never split.

    Args:
      name: `"mnist-10k"` (shipped), `"mnist"`, or a folder in `$ENTROPY_OPTAX_DATA`.

    Returns:
      The data set.

    Raises:
      DataError: if files are missing or damaged; the message says which, and what to
        do about it.
    """
    if name == "mnist-10k":
        _verify_checksums(SHIPPED)
        train, test = _read_folder(SHIPPED)
    else:
        train, test = _find(name)
    return _assemble(name, train, test)


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
        return _read_folder(pathlib.Path(root) / name)
    if name == "mnist" and importlib.util.find_spec("tensorflow_datasets"):
        return _load_tfds(name)
    looked = f"{pathlib.Path(root) / name} does not exist" if root else "it is not set"
    files = ", ".join(f"{n}[.gz]" for pair in _FILES.values() for n in pair)
    way_out = (
        f"Either put the idx files {files} into a folder {name}/ and set"
        f" {DATA_VARIABLE} to the folder that holds {name}/"
    )
    if name == "mnist":
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
        splits.append(Split(*read_pair(*paths)))
    return splits[0], splits[1]


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
        Split(np.asarray(images)[..., 0], np.asarray(labels))
        for images, labels in splits
    )
    return train, test


def _assemble(name: str, train: Split, test: Split) -> Dataset:
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"data {name!r}: found test images of {test.images.shape[1:]} pixels,"
            f" expected {train.images.shape[1:]} as in training"
        )
    num_classes = _NUM_CLASSES.get(name, int(train.labels.max()) + 1)
    for which, split in (("training", train), ("test", test)):
        if split.labels.max() >= num_classes:
            raise DataError(
                f"data {name!r}: found the label {split.labels.max()} among the"
                f" {which} labels, expected labels below {num_classes}"
            )
    held_out = num_validation(len(train.images))
    if held_out < 1:
        raise DataError(
            f"data {name!r}: found {len(train.images)} training images, expected at"
            " least 5, so that one can be held out"
        )
    return Dataset(
        name=name,
        num_classes=num_classes,
        train=_scale(Split(*(a[:-held_out] for a in train))),
        validation=_scale(Split(*(a[-held_out:] for a in train))),
        test=_scale(test),
    )


def _scale(split: Split) -> Split:
    # The paper's scaling; it leaves background pixels at exactly -1.
    images = (split.images.astype(np.float32) - 126) / 126
    return Split(images[..., None], split.labels.astype(np.int32))
