"""Texts by name, as streams of tokens, and the batches that follow such a stream.

All come from the folder that the environment variable `ENTROPY_OPTAX_DATA` names.
"""

import collections
import os
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from entropy_optax.experiments._idx import DataError
from entropy_optax.experiments.data import DATA_VARIABLE

UNKNOWN, END = "<unk>", "<eos>"
NUM_WORDS = 10_000
_BOOK = "warpeace.txt"
# A word may have apostrophes inside; a dash is two hyphens; other marks stand alone.
_WORD = re.compile(r"\w+(?:'\w+)*|--|[^\w\s]")


class TextDataset(NamedTuple):
    """A text and its three disjoint, contiguous splits.

    Attributes:
      name: the name it was loaded by.
      vocab_size: number of symbols; tokens are below it.
      symbols: what each token stands for, words or single bytes.
      train: `[n]`, int32, tokens to take gradients on.
      validation: `[n]`, int32, tokens to choose by.
      test: `[n]`, int32, tokens to report on.
    """

    name: str
    vocab_size: int
    symbols: tuple[str, ...] | tuple[bytes, ...]
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def load_text(name: str) -> TextDataset:
    """Loads a text by name.

    - `"warpeace"` is `warpeace.txt` byte by byte. Its vocabulary is all bytes in it,
      sorted; the first 80 % are for training, then 10 % each for validation and test.
    - `"warpeace-words"` is the same file in lower case, cut into words and punctuation
      marks. Line breaks inside a paragraph are blanks; a paragraph (blank lines lie
      between them) ends in `<eos>`. It is split as above. The vocabulary has at most
      10,000 symbols: `<unk>`, `<eos>` and the training split's most frequent words;
      all others become `<unk>`.
    - Any other name is a folder with `train.txt`, `valid.txt` and `test.txt` (or
      `ptb.train.txt` and so on), words between blanks; every line ends in `<eos>`. The
      vocabulary is what occurs in training, the most frequent first.

    Args:
      name: `"warpeace"`, `"warpeace-words"` or a folder in `$ENTROPY_OPTAX_DATA`.

    Returns:
      The text.

    Raises:
      DataError: if a file is missing, is no text or is too short to split, or if a
        word occurs outside training alone and there is no `<unk>` to stand for it.
    """
    if name != pathlib.PurePath(name).name or name in ("", ".", ".."):
        raise DataError(f"data: {name!r} is not the name of a text")
    root = os.environ.get(DATA_VARIABLE)
    if not root:
        raise DataError(
            f"data: no text {name!r}, for ${DATA_VARIABLE} is not set. Set it to the"
            f" folder that holds {_BOOK}, or a folder with train.txt, valid.txt and"
            " test.txt"
        )
    if name == "warpeace":
        return _load_bytes(name, pathlib.Path(root) / _BOOK)
    if name == "warpeace-words":
        return _load_words(name, pathlib.Path(root) / _BOOK)
    return _load_folder(name, pathlib.Path(root) / name)


def batchify(tokens: np.ndarray, batch_size: int, length: int) -> np.ndarray:
    """Lays out tokens as parallel streams and cuts these into windows.

    Window i of a stream continues its window i - 1, so that a network's state can be
    handed on from batch to batch. Inputs are `[..., :-1]` and targets `[..., 1:]`;
    consecutive windows, and consecutive streams, share one token. So every token but
    the first is a target once, up to the end, where fewer than `batch_size * length`
    do not fill a window of each stream and are left out.

    Args:
      tokens: `[n]`.
      batch_size: number of streams.
      length: number of targets in a window.

    Returns:
      `[num_batches, batch_size, length + 1]`.

    Raises:
      DataError: if there are too few tokens for one batch, or a size is below 1.
    """
    for argument, value in (("batch_size", batch_size), ("length", length)):
        if value < 1:
            raise DataError(f"{argument}: got {value}, expected at least 1")
    num_batches = (len(tokens) - 1) // (batch_size * length)
    if num_batches < 1:
        raise DataError(
            f"tokens: found {len(tokens)}, expected at least {batch_size * length + 1}"
            f" for a batch of {batch_size} x {length}"
        )
    streams = np.arange(batch_size)[:, None] * num_batches * length
    windows = np.arange(num_batches)[:, None, None] * length
    return tokens[windows + streams + np.arange(length + 1)]


def _load_bytes(name: str, path: pathlib.Path) -> TextDataset:
    data = np.frombuffer(_read_bytes(path), np.uint8)
    values, tokens = np.unique(data, return_inverse=True)
    tokens = tokens.astype(np.int32)
    symbols = tuple(bytes([value]) for value in values)
    train, validation, test = (tokens[part] for part in _parts(path, len(tokens)))
    return TextDataset(name, len(symbols), symbols, train, validation, test)


def _load_words(name: str, path: pathlib.Path) -> TextDataset:
    paragraphs = re.split(r"\n\s*\n", _read_text(path).lower().strip())
    words = [word for text in paragraphs for word in (*_WORD.findall(text), END)]
    splits = [words[part] for part in _parts(path, len(words))]
    common = [word for word in _by_frequency(splits[0]) if word != END]
    symbols = (UNKNOWN, END, *common[: NUM_WORDS - 2])
    train, validation, test = (_encode(split, symbols, path) for split in splits)
    return TextDataset(name, len(symbols), symbols, train, validation, test)


def _load_folder(name: str, folder: pathlib.Path) -> TextDataset:
    paths = [_existing(folder, split) for split in ("train", "valid", "test")]
    splits = [
        [word for line in _lines(_read_text(path)) for word in (*line.split(), END)]
        for path in paths
    ]
    symbols = _by_frequency(splits[0])
    train, validation, test = (
        _encode(split, symbols, path) for split, path in zip(splits, paths, strict=True)
    )
    return TextDataset(name, len(symbols), symbols, train, validation, test)


def _existing(folder: pathlib.Path, split: str) -> pathlib.Path:
    for candidate in (folder / f"{split}.txt", folder / f"ptb.{split}.txt"):
        if candidate.is_file():
            return candidate
    raise DataError(
        f"{folder / split}.txt: found neither this file nor ptb.{split}.txt beside it,"
        f" expected words between blanks. ${DATA_VARIABLE} is the folder to put"
        f" {folder.name}/ into"
    )


def _lines(text: str) -> list[str]:
    # Not `splitlines`, which also cuts at rare characters inside of a line.
    return text.removesuffix("\n").split("\n")


def _parts(path: pathlib.Path, num_tokens: int) -> tuple[slice, slice, slice]:
    if num_tokens < 10:
        raise DataError(f"{path}: found {num_tokens} tokens, expected at least 10")
    first, second = num_tokens * 8 // 10, num_tokens * 9 // 10
    return slice(first), slice(first, second), slice(second, None)


def _by_frequency(words: Sequence[str]) -> tuple[str, ...]:
    counts = collections.Counter(words)
    return tuple(sorted(counts, key=lambda word: (-counts[word], word)))


def _encode(
    words: Sequence[str], symbols: tuple[str, ...], path: pathlib.Path
) -> np.ndarray:
    tokens = {symbol: token for token, symbol in enumerate(symbols)}
    unknown = tokens.get(UNKNOWN)
    if unknown is None:
        missing = next((word for word in words if word not in tokens), None)
        if missing is not None:
            raise DataError(
                f"{path}: found the word {missing!r}, expected words of the training"
                f" file, which has no {UNKNOWN} to stand for others"
            )
    return np.array([tokens.get(word, unknown) for word in words], np.int32)


def _read_text(path: pathlib.Path) -> str:
    try:
        text = _read_bytes(path).decode("utf-8-sig")  # a mark at its start is no word
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: found the byte 0x{error.object[error.start]:02x} at"
            f" {error.start}, expected text in UTF-8"
        ) from error
    return text.replace("\r\n", "\n")


def _read_bytes(path: pathlib.Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}), expected a text"
        ) from error
    if not data:
        raise DataError(f"{path}: found an empty file, expected a text")
    return data
