"""Landscapes on a grid against quadrature, closed forms and limits; two valleys."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate

import entropy_optax as eo
from entropy_optax import measure

pytestmark = pytest.mark.usefixtures("quick_compilation")

X = np.arange(1000)
SCOPES = (1e-3, 5e-5)


@pytest.mark.parametrize("gamma", SCOPES)
def test_the_minimum_moves_from_the_sharp_valley_to_the_wide_one(gamma):
    loss = measure.paper_landscape(X)
    smooth = measure.smoothed_landscape(loss, gamma=gamma)
    assert loss.argmin() == 300
    assert abs(smooth.argmin() - 650) < 20
    assert smooth[300] - smooth.min() > 0.1  # not by a hair
    # Ripples are gone, at the narrower scope the sharp valley is still there.
    expected = {1e-3: [300, 650], 5e-5: [647]}
    assert measure.local_minima(smooth).tolist() == expected[gamma]
    assert len(measure.local_minima(loss)) > 20


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("gamma", SCOPES)
def test_agrees_with_quadrature_of_the_formula(gamma, temperature):
    smooth = measure.smoothed_landscape(
        measure.paper_landscape(X), gamma=gamma, temperature=temperature
    )
    ends = measure.paper_landscape([0.0, 999.0])

    def density(z, x):
        inside = float(measure.paper_landscape(z))
        f = inside if 0 <= z <= 999 else ends[int(z > 0)]
        return np.exp(-(f + gamma / 2 * (z - x) ** 2) / temperature)

    close = 1e-7 if temperature < 1 else 1e-10
    width = np.sqrt(temperature / gamma)
    for x in (300, 480, 650):
        low, high = x - 10 * width, x + 10 * width
        kinks = sorted({low, high, *(p for p in (0, 300, 999) if low < p < high)})
        pieces = np.unique(np.concatenate([kinks, np.arange(0, 1000, 20)]))
        pieces = pieces[(pieces >= low) & (pieces <= high)]
        mass = sum(
            integrate.quad(density, a, b, args=(x,), epsabs=0, epsrel=1e-12)[0]
            for a, b in itertools.pairwise(pieces)
        )
        exact = -temperature * np.log(mass / np.sqrt(2 * np.pi * temperature / gamma))
        # At the low temperature the sharp valley is one grid point wide, and where the
        # border is within reach the trapezoid rule sees its kink.
        near = min(x, 999 - x) < 8 * width
        assert smooth[x] == pytest.approx(exact, rel=1e-4 if near else close)


def test_a_quadratic_in_two_dimensions_has_its_closed_form():
    first, second = np.linspace(-8, 8, 161), np.linspace(-9, 9, 121)
    hessian, gamma, temperature = np.array([3.0, 0.5]), 2.0, 0.4
    loss = hessian[0] / 2 * first[:, None] ** 2 + hessian[1] / 2 * second**2
    smooth = measure.smoothed_landscape(
        loss, (0.1, 0.15), gamma=gamma, temperature=temperature
    )
    weak = gamma * hessian / (gamma + hessian)
    exact = weak[0] / 2 * first[:, None] ** 2 + weak[1] / 2 * second**2
    exact += temperature / 2 * np.log(1 + hessian / gamma).sum()
    inside = np.s_[40:121, 40:81]  # away from the border, beyond which f is constant
    np.testing.assert_allclose(smooth[inside], exact[inside], rtol=1e-6)


def test_a_high_gamma_gives_the_loss_itself():
    loss = measure.paper_landscape(X)
    np.testing.assert_array_equal(measure.smoothed_landscape(loss, gamma=1e4), loss)
    errors = [
        np.abs(measure.smoothed_landscape(loss, gamma=g) - loss).max()
        for g in (0.1, 1.0, 10.0)
    ]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("gamma", SCOPES)
def test_a_low_temperature_gives_the_moreau_envelope(gamma):
    loss = measure.paper_landscape(X)
    envelope = (loss + gamma / 2 * (X[:, None] - X) ** 2).min(axis=1)
    zero = measure.smoothed_landscape(loss, gamma=gamma, temperature=0)
    np.testing.assert_allclose(zero, envelope, rtol=1e-14)
    cold = measure.smoothed_landscape(loss, gamma=gamma, temperature=1e-5)
    np.testing.assert_allclose(cold, envelope, atol=2e-4)


def test_a_constant_is_its_own_local_entropy_up_to_the_border():
    flat = measure.smoothed_landscape(np.full((30, 20), 2.5), gamma=1e-4)
    np.testing.assert_allclose(flat, 2.5, rtol=1e-13)


def test_the_border_values_go_on_beyond_the_grid():
    """A longer grid with the same constants around gives the same answer."""
    loss = measure.paper_landscape(X)
    wide = np.concatenate([np.full(900, loss[0]), loss, np.full(900, loss[-1])])
    for gamma in (1e-3, 2e-4):
        ours = measure.smoothed_landscape(loss, gamma=gamma)
        longer = measure.smoothed_landscape(wide, gamma=gamma)[900:1900]
        np.testing.assert_allclose(ours, longer, rtol=1e-12)


def test_the_optimizers_gradient_is_that_of_the_smoothed_landscape():
    """Its -grad F = gamma (x - <x'>), by the same quadrature, is the slope of -F."""
    x, gamma = np.arange(0, 1000, 0.5), 1e-3
    smooth = measure.smoothed_landscape(measure.paper_landscape(x), 0.5, gamma=gamma)
    slope = np.gradient(smooth, x)
    for place in (330, 450, 600):
        weight = np.exp(-measure.paper_landscape(x) - gamma / 2 * (x - place) ** 2)
        mean = (weight * x).sum() / weight.sum()
        assert slope[2 * place] == pytest.approx(gamma * (place - mean), rel=2e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 0.0}, "gamma: got 0.0, wanted a number above 0"),
        ({"gamma": 1.0, "temperature": -1.0}, "temperature: got -1.0, wanted 0"),
        ({"gamma": 1.0, "spacing": 0.0}, "spacing: got 0.0, wanted a number above 0"),
        ({"gamma": 1.0, "spacing": (1.0, 2.0)}, "spacing: got 2 for values of 1 axes"),
        ({"gamma": 1e-12}, "gamma: the Gaussian's width .* 1e\\+06 grid points"),
        ({"gamma": 1.0, "values": [0.0, np.nan]}, "values: 1 of 2 are not finite"),
    ],
)
def test_clear_errors(arguments, message):
    arguments = {"values": [0.0, 1.0, 2.0]} | arguments
    with pytest.raises(measure.MeasureError, match=message):
        measure.smoothed_landscape(**arguments)


def test_local_minima_wants_a_line():
    with pytest.raises(measure.MeasureError, match="values: got 2 dimensions, want"):
        measure.local_minima(np.zeros((2, 2)))


# Two dimensions.


def test_the_two_valleys_are_what_their_docstring_says():
    places = jnp.array([[-1.5, 0.0], [1.5, 0.0]])
    np.testing.assert_allclose(measure.two_valleys(places), [0.02, 0.22], atol=3e-3)
    curvatures = jax.vmap(jax.hessian(measure.two_valleys))(places)
    top = np.linalg.eigvalsh(np.asarray(curvatures))[:, -1]
    np.testing.assert_allclose(top, [89, 1.3], rtol=0.03)


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_the_minimum_moves_in_two_dimensions_too(gamma):
    line = np.linspace(-4, 4, 121)
    points = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1)
    loss = np.asarray(measure.two_valleys(jnp.asarray(points)))
    smooth = measure.smoothed_landscape(
        loss, line[1] - line[0], gamma=gamma, temperature=0.2
    )
    lowest = lambda f: points.reshape(-1, 2)[f.argmin()]
    assert np.linalg.norm(lowest(loss) - [-1.5, 0]) < 0.1
    assert np.linalg.norm(lowest(smooth) - [1.5, 0]) < 0.1


def test_a_path_is_that_of_a_plain_loop():
    starts = jnp.array([[2.0, 1.0], [-3.0, 0.5]])
    paths = measure.descent_paths(
        measure.two_valleys,
        optax.sgd(0.1),
        starts,
        num_gradients=6,
        record_every=2,
        key=jax.random.key(1),
    )
    x, expected = starts, [starts]
    for step in range(6):
        x = x - 0.1 * jax.vmap(jax.grad(measure.two_valleys))(x)
        if step % 2:
            expected.append(x)
    np.testing.assert_allclose(paths, jnp.stack(expected, axis=1), rtol=1e-5)


def test_the_params_at_the_end_of_a_cycle_are_the_outer_iterate():
    """So Entropy-SGD at gamma -> infinity stays, and SAM is not at its ascent."""
    start = jnp.array([[1.0, 0.5]])
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(0.5))
    sam = optax.contrib.sam(optax.sgd(0.0), ascent, sync_period=2)
    run = lambda tx: measure.descent_paths(
        measure.two_valleys, tx, start, num_gradients=40, key=jax.random.key(0)
    )
    np.testing.assert_allclose(run(sam)[0], np.repeat(start, 3, axis=0), atol=1e-6)
    stuck = eo.entropy_sgd(
        1.0, gamma=0.99e6, step_size=1e-6, num_steps=20, momentum=None, temperature=0.0
    )
    np.testing.assert_allclose(run(stuck)[0], np.repeat(start, 3, axis=0), atol=1e-4)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_entropy_sgd_finds_the_wide_valley_more_often(seed):
    """The intervals of 200 runs are apart: the shares differ by about 25 points."""
    start_key, key = jax.random.split(jax.random.key(seed))
    starts = jax.random.uniform(start_key, (200, 2), minval=-4, maxval=4)
    ours = eo.entropy_sgd(
        1.0, gamma=1.0, num_steps=20, step_size=0.1, temperature=0.2, momentum=None
    )
    shares = {}
    for name, tx in (("sgd", optax.sgd(0.1)), ("ours", ours)):
        paths = measure.descent_paths(
            measure.two_valleys,
            tx,
            starts,
            num_gradients=4000,
            key=key,
            record_every=4000,
        )
        bottoms = measure.settle(measure.two_valleys, paths[:, -1])
        shares[name] = measure.valley_shares(
            bottoms, {"sharp": [-1.5, 0.0], "wide": [1.5, 0.0]}
        )
    assert shares["sgd"]["wide"].high < shares["ours"]["wide"].low
    assert shares["ours"]["sharp"].high < shares["sgd"]["sharp"].low
    assert sum(share.count for share in shares["ours"].values()) == 200


def test_wilsons_interval_is_the_formula():
    points = np.concatenate([np.zeros(7), np.full(13, 9.0)])[:, None]
    share = measure.valley_shares(points, {"a": [0.0]})["a"]
    z, n, p = 1.959964, 20, 7 / 20
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert share.value == p
    np.testing.assert_allclose(
        [share.low, share.high], [middle - half, middle + half], rtol=1e-6
    )


def test_clear_errors_in_two_dimensions():
    with pytest.raises(measure.MeasureError, match="num_gradients: got 30, wanted a m"):
        measure.descent_paths(
            measure.two_valleys,
            optax.sgd(0.1),
            jnp.zeros((1, 2)),
            num_gradients=30,
            key=jax.random.key(0),
        )
    with pytest.raises(measure.MeasureError, match="radius: at 2 a point is near two"):
        measure.valley_shares([[0.5]], {"a": [0.0], "b": [1.0]}, radius=2)
