"""Texts: vocabularies, splits and the windows of parallel streams."""

import numpy as np
import pytest

from entropy_optax.experiments import text
from entropy_optax.experiments._idx import DataError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTROPY_OPTAX_DATA", str(tmp_path))
    return tmp_path


def words(loaded, split):
    return [loaded.symbols[token] for token in getattr(loaded, split)]


def check(loaded):
    assert loaded.vocab_size == len(loaded.symbols) == len(set(loaded.symbols))
    for split in loaded[3:]:
        assert split.dtype == np.int32
        assert split.ndim == 1
        assert split.min() >= 0
        assert split.max() < loaded.vocab_size


def write_ptb(folder, train, valid="b a\n", test="a\n", form="{}.txt"):
    folder.mkdir()
    for name, content in (("train", train), ("valid", valid), ("test", test)):
        (folder / form.format(name)).write_text(content)


def test_bytes_of_the_book(folder):
    content = b"\xef\xbb\xbfhello,\r\n" + bytes(range(97, 113)) * 2
    (folder / "warpeace.txt").write_bytes(content)
    loaded = text.load_text("warpeace")
    check(loaded)
    assert loaded.name == "warpeace"
    assert loaded.symbols == tuple(bytes([b]) for b in sorted(set(content)))
    assert [len(split) for split in loaded[3:]] == [34, 4, 5]
    joined = b"".join(loaded.symbols[t] for t in np.concatenate(loaded[3:]))
    assert joined == content


def test_words_of_the_book(folder):
    book = (
        "\ufeff\"Well, Don't--go\r\nto 'Rome'!\r\n\r\n\r\nA  1805 café.\r\n"
        " \r\nIt was it, it was.\r\n"
    )
    (folder / "warpeace.txt").write_bytes(book.encode())
    loaded = text.load_text("warpeace-words")
    check(loaded)
    # Blanks and line breaks do not count, blank lines do.
    expected = [
        *['"', "well", ",", "don't", "--", "go", "to", "'", "rome", "'", "!", "<eos>"],
        *["a", "1805", "café", ".", "<eos>"],
        *["it", "was", "it", ",", "it", "was", ".", "<eos>"],
    ]
    n = len(expected)
    assert words(loaded, "train") == expected[: n * 8 // 10]
    # "was" and "it" are in training, so nothing here is unknown.
    assert words(loaded, "validation") == expected[n * 8 // 10 : n * 9 // 10]
    assert words(loaded, "test") == expected[n * 9 // 10 :]
    assert loaded.symbols[:2] == ("<unk>", "<eos>")
    # The most frequent first, in alphabetical order where they are equally frequent.
    assert loaded.symbols[2:5] == ("'", "it", "!")


def test_rare_and_new_words_are_unknown(folder, monkeypatch):
    monkeypatch.setattr(text, "NUM_WORDS", 4)
    (folder / "warpeace.txt").write_text("b b b a a a c d\n\ne a")
    loaded = text.load_text("warpeace-words")
    check(loaded)
    assert loaded.symbols == ("<unk>", "<eos>", "a", "b")
    assert words(loaded, "train") == [*"bbbaaa", "<unk>", "<unk>", "<eos>"]
    assert words(loaded, "validation") == ["<unk>"]  # e, which only occurs here
    assert words(loaded, "test") == ["a", "<eos>"]


@pytest.mark.parametrize("form", ["{}.txt", "ptb.{}.txt"])
def test_a_folder_in_the_form_of_ptb(folder, form):
    train = " a <unk> b \n a N\u2028N\n\n"
    write_ptb(folder / "ptb", train, valid="b new a\n", test="a", form=form)
    loaded = text.load_text("ptb")
    check(loaded)
    # Each line ends, an empty one too; only "\n" ends a line.
    lines = ["a", "<unk>", "b", "<eos>", "a", "N", "N", "<eos>", "<eos>"]
    assert words(loaded, "train") == lines
    assert words(loaded, "validation") == ["b", "<unk>", "a", "<eos>"]
    assert words(loaded, "test") == ["a", "<eos>"]
    assert loaded.symbols == ("<eos>", "N", "a", "<unk>", "b")


def test_a_new_word_without_unk_is_named(folder):
    write_ptb(folder / "plain", "a b\n", test="a b\nb zebra a\n")
    with pytest.raises(DataError, match=r"test\.txt: found the word 'zebra', exp"):
        text.load_text("plain")


def test_what_is_missing_or_damaged_is_named(folder, monkeypatch):
    with pytest.raises(DataError, match=r"warpeace\.txt: cannot be read"):
        text.load_text("warpeace")
    with pytest.raises(DataError, match=r"train\.txt: found neither .* ptb\.train"):
        text.load_text("ptb")
    write_ptb(folder / "ptb", "a b\n", valid="")
    with pytest.raises(DataError, match=r"valid\.txt: found an empty file"):
        text.load_text("ptb")
    book = folder / "warpeace.txt"
    book.write_bytes(b"too short")
    for name in ("warpeace", "warpeace-words"):
        with pytest.raises(DataError, match=r"\.txt: found \d tokens, expected at"):
            text.load_text(name)
    book.write_bytes(b"caf\xe9 and so on")
    with pytest.raises(DataError, match=r"\.txt: found the byte 0xe9 at 3, expected"):
        text.load_text("warpeace-words")
    for name in ("", "..", "../ptb"):
        with pytest.raises(DataError, match="not the name of a text"):
            text.load_text(name)
    monkeypatch.delenv("ENTROPY_OPTAX_DATA")
    with pytest.raises(DataError, match="ENTROPY_OPTAX_DATA is not set"):
        text.load_text("ptb")


@pytest.mark.parametrize("extra", [0, 1, 59])
def test_windows_continue_and_lose_no_target(extra):
    batch_size, length, num = 4, 15, 3
    tokens = np.arange(num * batch_size * length + 1 + extra, dtype=np.int32)
    batches = text.batchify(tokens, batch_size, length)
    assert batches.shape == (num, batch_size, length + 1)
    assert batches.dtype == np.int32
    inputs, targets = batches[..., :-1], batches[..., 1:]
    np.testing.assert_array_equal(targets, inputs + 1)
    # The last target of a window is the first input of the stream's next one.
    np.testing.assert_array_equal(targets[:-1, :, -1], inputs[1:, :, 0])
    # Stream after stream, window after window, every token but the first is a target.
    np.testing.assert_array_equal(
        np.swapaxes(targets, 0, 1).ravel(), np.arange(1, num * batch_size * length + 1)
    )


def test_too_few_tokens_for_a_batch():
    tokens = np.arange(60, dtype=np.int32)
    with pytest.raises(
        DataError, match=r"tokens: found 60, expected at least 61 .*4 x"
    ):
        text.batchify(tokens, 4, 15)
    for sizes in ((0, 5), (5, 0)):
        with pytest.raises(DataError, match="got 0, expected at least 1"):
            text.batchify(tokens, *sizes)
