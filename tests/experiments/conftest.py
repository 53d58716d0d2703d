"""A tiny idx data set, and a way to write damaged ones."""

import gzip
import pathlib
import struct

import numpy as np
import pytest


@pytest.fixture(autouse=True, scope="module")
def quickly(quick_compilation):
    """All of these tests compile more than they compute."""


def idx_bytes(array: np.ndarray, type_code: int = 0x08) -> bytes:
    header = bytes([0, 0, type_code, array.ndim])
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_tiny(folder: pathlib.Path, *, compress: bool = False) -> None:
    """60 training and 30 test images of 8 x 8 pixels: class k is a bright column k."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for split, count in (("train", 60), ("t10k", 30)):
        labels = np.arange(count, dtype=np.uint8) % 4
        images = generator.integers(0, 100, (count, 8, 8), dtype=np.uint8)
        images[np.arange(count), :, labels] = 255
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx_bytes(array)
            if compress:
                data = gzip.compress(data, mtime=0)
            suffix = ".gz" if compress else ""
            (folder / f"{split}-{name}-ubyte{suffix}").write_bytes(data)


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    """A folder for ENTROPY_OPTAX_DATA that holds the data set `tiny`."""
    folder = tmp_path / "data"
    write_tiny(folder / "tiny")
    monkeypatch.setenv("ENTROPY_OPTAX_DATA", str(folder))
    return folder


@pytest.fixture
def make_idx():
    return idx_bytes


@pytest.fixture(scope="session")
def make_tiny():
    return write_tiny
