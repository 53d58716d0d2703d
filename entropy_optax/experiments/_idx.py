"""Reader for idx files, the format of MNIST, with nothing but NumPy.

An idx file is two zero bytes, a type code, the number of dimensions, each dimension
as a 32-bit big-endian integer, and the numbers themselves in C order.
"""

import gzip
import math
import pathlib
import zlib

import numpy as np

_UNSIGNED_BYTE = 0x08
_GZIP_MAGIC = b"\x1f\x8b"


class DataError(ValueError):
    """A data file is missing, damaged or not what it should be."""


def read_idx(path: pathlib.Path, ndim: int) -> np.ndarray:
    """Reads and checks an idx file of unsigned bytes, compressed or not.

    Args:
      path: the file; gzip is recognised by its content, not by its name.
      ndim: number of dimensions wanted, 3 for images and 1 for labels.

    Returns:
      A `uint8` array of rank `ndim`.

    Raises:
      DataError: if the file cannot be read or is not exactly such an array. The
        message names the file, what was found and what was expected.
    """
    data = _read_bytes(path)
    header = 4 + 4 * ndim
    if len(data) < 4:
        raise DataError(f"{path}: found {len(data)} bytes, expected an idx header")
    if data[:2] != b"\0\0":
        raise DataError(
            f"{path}: found magic number 0x{data[:4].hex()}, expected"
            f" 0x0000{_UNSIGNED_BYTE:02x}{ndim:02x}"
        )
    if data[2] != _UNSIGNED_BYTE:
        raise DataError(
            f"{path}: found idx type code 0x{data[2]:02x}, expected"
            f" 0x{_UNSIGNED_BYTE:02x} (unsigned bytes)"
        )
    if data[3] != ndim:
        raise DataError(f"{path}: found {data[3]} dimensions, expected {ndim}")
    if len(data) < header:
        raise DataError(
            f"{path}: found {len(data)} bytes, expected a header of {header} bytes"
        )
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", ndim, offset=4))
    expected = header + math.prod(shape)
    if 0 in shape:
        raise DataError(f"{path}: found an empty array of shape {shape}")
    if len(data) != expected:
        raise DataError(
            f"{path}: found {len(data)} bytes, expected {expected} for the shape"
            f" {shape} in its header"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def read_pair(
    images_path: pathlib.Path, labels_path: pathlib.Path
) -> tuple[np.ndarray, np.ndarray]:
    """Reads images and their labels and checks that they are equally many.

    Args:
      images_path: idx file of rank 3.
      labels_path: idx file of rank 1.

    Returns:
      Images `[n, height, width]` and labels `[n]`, both `uint8`.

    Raises:
      DataError: if a file is damaged or the counts differ.
    """
    images = read_idx(images_path, ndim=3)
    labels = read_idx(labels_path, ndim=1)
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path}: found {len(labels)} labels, expected {len(images)}, the"
            f" number of images in {images_path}"
        )
    return images, labels


def _read_bytes(path: pathlib.Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}), expected an idx file"
        ) from error
    if not data.startswith(_GZIP_MAGIC):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: found a damaged gzip stream ({error}), expected a complete one"
        ) from error
