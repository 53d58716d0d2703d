"""Models: parameter counts, and fast convolution and pooling against XLA's."""

import flax.linen as nn
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from entropy_optax.experiments import convolution
from entropy_optax.experiments.convolution import conv_general_dilated, max_pool
from entropy_optax.experiments.language_models import (
    LANGUAGE_MODELS,
    CharLSTM,
    WordLSTM,
)
from entropy_optax.experiments.models import MODELS, AllCNN, LeNet, MnistFC

NHWC = ("NHWC", "HWIO", "NHWC")


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes(model, image=(28, 28, 1)):
    images = jnp.zeros((2, *image))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))


def test_mnistfc_parameters():
    dense = lambda n_in, n_out: n_in * n_out + n_out
    expected = dense(784, 1024) + dense(1024, 1024) + dense(1024, 10)
    assert count(shapes(MnistFC())["params"]) == expected == 1_863_690


def test_networks_of_the_papers_spectra():
    # Chaudhari et al. (2017), Figures 1 and 3.
    assert count(shapes(MODELS["lenet_small"]())["params"]) == 47_658
    assert count(shapes(MODELS["mnistfc_small"]())["params"]) == 50_890
    small = shapes(MODELS["mlp_small"](), image=(14, 14, 1))
    assert count(small["params"]) == 6_634
    model = LANGUAGE_MODELS["char_lstm_small"](vocab_size=87)
    tokens = jnp.zeros((1, 3), jnp.int32)
    variables = jax.eval_shape(
        lambda: model.init(
            jax.random.key(0), tokens, model.initial_carry(1), train=False
        )
    )
    # One layer: gates see 87 symbols, 48 units and a bias; then an output layer.
    assert count(variables) == 4 * 48 * (87 + 48 + 1) + 49 * 87 == 30_375


def test_mnistfc_with_batch_norm():
    variables = shapes(MODELS["mnistfc_bn"]())
    assert count(variables["params"]) == 1_863_690 + 2 * 2 * 1024
    assert count(variables["batch_stats"]) == 2 * 2 * 1024


def test_mnistfc_norms_what_the_relu_leaves():
    # As in the released Lua code: after the ReLU, not before it.
    model = MnistFC(3, features=(4,), dropout_rate=0.0, batch_norm=True)
    images = jax.random.normal(jax.random.key(0), (8, 2, 2, 1))
    variables = model.init(jax.random.key(1), images, train=False)
    logits, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
    params = jax.tree.map(np.asarray, variables["params"])
    first, last = (params[f"Dense_{i}"] for i in (0, 1))
    hidden = np.maximum(np.reshape(images, (8, 4)) @ first["kernel"] + first["bias"], 0)
    normed = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
    expected = normed @ last["kernel"] + last["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_mnistfc_starts_as_torch_does():
    variables = MODELS["mnistfc_torch"]().init(
        jax.random.key(0), jnp.zeros((1, 28, 28, 1)), train=False
    )
    assert count(variables["params"]) == 1_863_690
    fans = {"Dense_0": 784, "Dense_1": 1024, "Dense_2": 1024}
    for name, fan_in in fans.items():
        for leaf in jax.tree.leaves(variables["params"][name]):
            scaled = np.ravel(leaf) * np.sqrt(fan_in)
            assert np.abs(scaled).max() <= 1
            # The square of U[-1, 1] has mean 1/3 and deviation sqrt(4 / 45) = .298.
            error = 4 * 0.298 / np.sqrt(scaled.size)
            assert np.mean(scaled**2) == pytest.approx(1 / 3, abs=error)


def test_lenet_parameters():
    conv = lambda n_in, n_out: 25 * n_in * n_out + n_out
    norm = lambda n: 2 * n
    # 28 - 4 = 24, pooled by 3 to 8; 8 - 4 = 4, pooled by 2 to 2.
    dense = 2 * 2 * 50 * 500 + 500 + 500 * 10 + 10
    expected = conv(1, 20) + norm(20) + conv(20, 50) + norm(50) + dense
    variables = shapes(LeNet())
    assert count(variables["params"]) == expected == 131_220  # the paper's number
    assert count(variables["batch_stats"]) == 2 * (20 + 50)


def test_allcnn_parameters():
    conv = lambda n_in, n_out, side=3: side**2 * n_in * n_out + n_out
    widths = [3, 96, 96, 96, 192, 192, 192, 192, 192]
    convolutions = sum(map(conv, widths, widths[1:])) + conv(192, 10, side=1)
    variables = shapes(AllCNN(), (32, 32, 3))
    norms = sum(widths[1:])
    assert count(variables["params"]) == convolutions + 2 * norms
    # The paper's 1.67 million, to three digits.
    assert round(count(variables["params"]) / 1e6, 2) == 1.67
    assert count(variables["batch_stats"]) == 2 * norms


def language_shapes(model):
    tokens = jnp.zeros((2, 5), jnp.int32)
    init = lambda: model.init(
        jax.random.key(0), tokens, model.initial_carry(2), train=False
    )
    return jax.eval_shape(init)["params"]


def gates(n_in, units):
    """An LSTM's parameters: four gates with one bias each, as Flax's cells have."""
    return 4 * units * (n_in + units + 1)


def test_char_lstm_parameters():
    """Two layers and logits, in the paper's size and a small one."""
    for vocab, units in ((87, 128), (7, 8)):
        expected = gates(vocab, units) + gates(units, units) + (units + 1) * vocab
        model = CharLSTM(vocab_size=vocab, features=units)
        assert count(language_shapes(model)) == expected


def test_word_lstm_parameters():
    for vocab, units in ((10_000, 1500), (7, 8)):
        expected = vocab * units + 2 * gates(units, units) + (units + 1) * vocab
        model = WordLSTM(vocab_size=vocab, features=units)
        assert count(language_shapes(model)) == expected
    assert count(language_shapes(WordLSTM())) == 66_022_000  # the paper's 66 million


@pytest.mark.parametrize("network", [MnistFC, LeNet, AllCNN])
def test_dropout_and_statistics_in_training_only(network):
    model = network(num_classes=3)
    images = jax.random.normal(jax.random.key(0), (4, 28, 28, 1))
    variables = jax.jit(lambda k: model.init(k, images, train=False))(jax.random.key(1))
    evaluate = jax.jit(lambda: model.apply(variables, images, train=False))
    np.testing.assert_array_equal(evaluate(), evaluate())
    assert evaluate().shape == (4, 3)

    @jax.jit
    def train(key):
        rngs = {"dropout": key}
        return model.apply(
            variables, images, train=True, rngs=rngs, mutable=["batch_stats"]
        )

    first, updated = train(jax.random.key(2))
    second, _ = train(jax.random.key(3))
    assert not np.allclose(first, second)
    assert ("batch_stats" in updated) == (network is not MnistFC)


@pytest.mark.parametrize(
    ("image", "kernel", "strides", "padding", "dilations"),
    [
        ((2, 9, 8, 3), (5, 5, 3, 4), (1, 1), "VALID", (None, None)),
        ((2, 9, 8, 3), (5, 5, 3, 4), (1, 1), "SAME", ((1, 1), (1, 1))),
        ((2, 9, 8, 3), (5, 4, 3, 4), (2, 3), "VALID", (None, None)),
        ((1, 7, 7, 1), (3, 2, 1, 2), (2, 3), "SAME", (None, None)),
        ((1, 7, 7, 1), (3, 2, 1, 2), (1, 2), ((2, 0), (1, 3)), (None, None)),
        ((2, 5, 6, 2), (2, 1, 2, 3), (2, 1), ((0, 0), (-1, 0)), (None, None)),
        ((2, 5, 6, 2), (1, 1, 2, 3), (3, 2), "SAME", (None, None)),
        ((2, 9, 8, 3), (3, 2, 3, 4), (1, 1), "SAME", (None, (2, 3))),
        ((2, 9, 8, 3), (3, 3, 3, 4), (2, 1), "VALID", (None, (3, 1))),
        ((2, 5, 4, 3), (3, 3, 3, 4), (1, 1), ((2, 2), (1, 2)), ((2, 3), None)),
        ((2, 5, 4, 3), (3, 2, 3, 4), (2, 3), ((1, 2), (-1, 4)), ((3, 2), (2, 2))),
    ],
)
def test_convolution_equals_xla(image, kernel, strides, padding, dilations):
    keys = jax.random.split(jax.random.key(0), 3)
    lhs, rhs = jax.random.normal(keys[0], image), jax.random.normal(keys[1], kernel)

    def ours(lhs, rhs):
        return conv_general_dilated(
            lhs, rhs, strides, padding, dilations[0], dilations[1], NHWC
        )

    def xla(lhs, rhs):
        return lax.conv_general_dilated(
            lhs,
            rhs,
            strides,
            padding,
            lhs_dilation=dilations[0],
            rhs_dilation=dilations[1],
            dimension_numbers=NHWC,
        )

    @jax.jit
    def both(lhs, rhs):
        out, pull = jax.vjp(ours, lhs, rhs)
        expected, pull_expected = jax.vjp(xla, lhs, rhs)
        cotangent = jax.random.normal(keys[2], expected.shape)
        return (out, *pull(cotangent)), (expected, *pull_expected(cotangent))

    for got, expected in zip(*both(lhs, rhs), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_convolution_inside_flax():
    images = jax.random.normal(jax.random.key(0), (2, 10, 10, 3))
    ours = nn.Conv(4, (5, 5), conv_general_dilated=conv_general_dilated)
    theirs = nn.Conv(4, (5, 5))
    variables = jax.jit(theirs.init)(jax.random.key(1), images)
    np.testing.assert_allclose(
        jax.jit(ours.apply)(variables, images),
        jax.jit(theirs.apply)(variables, images),
        atol=1e-5,
    )


@pytest.mark.parametrize("dtype", [None, jnp.float32])
def test_convolution_inside_nnx(dtype):
    images = jax.random.normal(jax.random.key(0), (2, 10, 10, 3)).astype(jnp.bfloat16)
    ours, theirs = (
        nnx.Conv(
            *(3, 4, (5, 5)),
            dtype=jnp.bfloat16,
            preferred_element_type=dtype,
            conv_general_dilated=convolve,
            rngs=nnx.Rngs(1),
        )
        for convolve in (conv_general_dilated, lax.conv_general_dilated)
    )
    call = nnx.jit(lambda layer, images: layer(images))
    out, expected = call(ours, images), call(theirs, images)
    assert out.dtype == expected.dtype == (dtype or jnp.bfloat16)
    out, expected = out.astype(jnp.float32), expected.astype(jnp.float32)
    np.testing.assert_allclose(out, expected, atol=0.05 if dtype is None else 1e-5)


def test_convolution_is_xlas_elsewhere(monkeypatch):
    lhs, rhs = jnp.ones((1, 6, 6, 2)), jnp.ones((3, 3, 2, 1))
    monkeypatch.setattr(convolution.jax, "default_backend", lambda: "tpu")
    jaxpr = jax.make_jaxpr(lambda a, b: conv_general_dilated(a, b, (1, 1), "SAME"))
    names = [equation.primitive.name for equation in jaxpr(lhs, rhs).eqns]
    assert names == ["conv_general_dilated"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"lhs_dilation": (2, 1)}, NotImplementedError, "padding: got 'VALID'"),
        ({"rhs_dilation": (1, 4)}, ValueError, "3 x 9 is larger"),
        ({"feature_group_count": 2}, NotImplementedError, "feature_group_count"),
        ({"out_sharding": "d"}, NotImplementedError, "out_sharding: got d"),
        (
            {"dimension_numbers": ("NCHW", "OIHW", "NCHW"), "rhs": (6, 6, 2, 2)},
            NotImplementedError,
            "dimension_numbers",
        ),
        ({"rhs": (3, 3, 5, 2)}, ValueError, "5 channels, images have 6"),
        ({"rhs": (8, 3, 6, 2)}, ValueError, "8 x 3 is larger"),
        ({"rhs": (3, 6, 2)}, ValueError, "rank 4"),
    ],
)
def test_convolution_refuses_what_it_cannot(changes, error, message):
    rhs = jnp.ones(changes.pop("rhs", (3, 3, 6, 2)))
    with pytest.raises(error, match=message):
        conv_general_dilated(jnp.ones((1, 6, 6, 6)), rhs, (1, 1), "VALID", **changes)


@pytest.mark.parametrize(("size", "side"), [(2, 8), (3, 8)])
def test_pooling_equals_xla(size, side):
    keys = jax.random.split(jax.random.key(0))
    images = jax.random.normal(keys[0], (2, side, side, 3))
    theirs = lambda x: nn.max_pool(x, (size, size), (size, size))

    @jax.jit
    def both(images):
        out, pull = jax.vjp(lambda x: max_pool(x, size), images)
        expected, pull_expected = jax.vjp(theirs, images)
        cotangent = jax.random.normal(keys[1], expected.shape)
        return (out, *pull(cotangent)), (expected, *pull_expected(cotangent))

    for got, expected in zip(*both(images), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_pooling_refuses_a_small_image():
    with pytest.raises(ValueError, match="size: 3 does not fit an image of 2 x 5"):
        max_pool(jnp.ones((1, 2, 5, 1)), 3)
