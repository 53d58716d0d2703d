"""Variants of a data set: fewer images, wrong labels, smaller images."""

import numpy as np
import pytest

from entropy_optax.experiments import data
from entropy_optax.experiments._idx import DataError
from entropy_optax.experiments._variants import mislabel


def test_first_training_images_only(data_folder):
    whole, part = data.load("tiny"), data.load("tiny", num_train=7)
    for full, few in zip(whole.train, part.train, strict=True):
        np.testing.assert_array_equal(full[:7], few)
    for split in ("validation", "test"):
        for full, few in zip(getattr(whole, split), getattr(part, split), strict=True):
            np.testing.assert_array_equal(full, few)
    assert len(data.load("tiny", num_train=48).train.labels) == 48
    for wrong in (0, -1, 49):
        with pytest.raises(
            DataError, match=f"num_train: got {wrong}, expected 1 to 48"
        ):
            data.load("tiny", num_train=wrong)


def test_noise_in_training_labels_only(data_folder):
    clean, fifth, most = (data.load("tiny", label_noise=s) for s in (0, 0.2, 0.9))
    changed = [s.train.labels != clean.train.labels for s in (fifth, most)]
    # 9.6 and 43.2 of 48, rounded; those of the smaller share among the others.
    assert [c.sum() for c in changed] == [10, 43]
    assert not (changed[0] & ~changed[1]).any()
    np.testing.assert_array_equal(
        fifth.train.labels[changed[0]], most.train.labels[changed[0]]
    )
    assert set(most.train.labels) <= set(range(4))
    assert most.train.labels.dtype == np.int32
    again = data.load("tiny", label_noise=0.9)
    np.testing.assert_array_equal(again.train.labels, most.train.labels)
    for split in ("validation", "test"):
        np.testing.assert_array_equal(
            getattr(most, split).labels, getattr(clean, split).labels
        )
    np.testing.assert_array_equal(most.train.images, clean.train.images)
    for wrong in (-0.1, 1.0, float("nan")):
        with pytest.raises(DataError, match="label_noise: got"):
            data.load("tiny", label_noise=wrong)


def test_wrong_labels_are_uniform():
    labels = np.arange(30_000, dtype=np.uint8) % 3
    noisy = mislabel(labels, 0.5, 3)
    wrong = noisy[noisy != labels]
    assert len(wrong) == 15_000
    # Two other classes each: 2,500 of every pair, give or take 5 standard errors.
    pairs = np.bincount(3 * labels[noisy != labels] + wrong, minlength=9).reshape(3, 3)
    assert not pairs.diagonal().any()
    assert np.abs(pairs[~np.eye(3, dtype=bool)] - 2_500).max() < 5 * 46
    # The same data on every machine and with every NumPy.
    assert mislabel(np.zeros(8, np.uint8), 0.5, 10).tolist() == [0, 7, 0, 0, 3, 0, 6, 8]
    with pytest.raises(DataError, match="label_noise: found a single class"):
        mislabel(np.zeros(8, np.uint8), 0.5, 1)


def test_pooling_averages_blocks(data_folder):
    whole, half = data.load("tiny"), data.load("tiny", pool=2)
    for full, small in zip(whole[2:], half[2:], strict=True):
        corners = [full.images[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        np.testing.assert_allclose(small.images, sum(corners) / 4, atol=1e-6)
        assert small.images.dtype == np.float32
        np.testing.assert_array_equal(full.labels, small.labels)
    for wrong in (0, -2, 3):
        with pytest.raises(DataError, match=f"pool: got {wrong}, expected .* 8 x 8"):
            data.load("tiny", pool=wrong)
