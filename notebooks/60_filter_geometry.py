# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Valleys in the geometry of the filters
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/entropy-optax/entropy_optax/blob/main/notebooks/60_filter_geometry.ipynb)
#
# Noise that matters to a small filter is nothing to a large one. Measured in units of
# each filter's own norm a valley's width no longer depends on how the layers are scaled
# against each other. We see that in two dimensions, in closed form, and then train on
# 500 digits.

# %%
# In Colab: install the package. Elsewhere it is there already, and this does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("entropy_optax") is None:
    source = "git+https://github.com/entropy-optax/entropy_optax"
    wanted = f"entropy-optax[experiments] @ {source}"
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", wanted])

# %%
import io

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from IPython.display import Image

import entropy_optax as eo
from entropy_optax.experiments import data

# %% [markdown]
# ## Two weights, one function
#
# A net of two layers of one weight each, $x \mapsto a\, b\, x$, is to be the identity:
# $f(a, b) = (a b - 1)^2$. All points of the hyperbola $a b = 1$ are the same function.
# Averaged over noise of one size, $\xi \sim N(0, r^2 I)$, the loss is
#
# $$E f = (a b - 1)^2 + r^2 (a^2 + b^2) + r^4,$$
#
# which prefers $a = b$, for no reason that the function knows. Averaged over noise of
# each weight's own size, $a (1 + r \xi_1)$ and $b (1 + r \xi_2)$,
#
# $$E f = (1 + r^2)^2 (a b)^2 - 2 a b + 1$$
#
# depends on the product alone. Beside the formulas: the mean over 20,000 draws of what
# `random_weight_perturbation` does.

# %%
RADIUS = 0.5


def loss_2d(p):
    return (p["a"] * p["b"] - 1.0) ** 2


def averaged(geometry):
    """The mean loss at perturbations of a = 2, b = 1/2, by the optimizer itself."""
    n = 20_000
    tx = eo.random_weight_perturbation(
        optax.set_to_zero(), RADIUS, geometry=geometry, num_replicas=n
    )
    here = {"a": jnp.array(2.0), "b": jnp.array(0.5)}
    params = eo.replica_params(here, n)
    updates, _ = tx.update(params, tx.init(params), params)
    losses = jax.vmap(loss_2d)(optax.apply_updates(params, updates))
    return float(losses.mean()), float(losses.std() / n**0.5)


def isotropic(a, b):
    return (a * b - 1) ** 2 + RADIUS**2 * (a**2 + b**2) + RADIUS**4


def filter_scaled(a, b):
    return (1 + RADIUS**2) ** 2 * (a * b) ** 2 - 2 * a * b + 1


by_draws = {
    "isotropic": averaged(None),
    "filter-scaled": averaged(eo.leaf_geometry()),  # a filter is one weight here
}
by_formula = {
    "isotropic": isotropic(2.0, 0.5),
    "filter-scaled": filter_scaled(2.0, 0.5),
}
for name, (mean, error) in by_draws.items():
    print(f"{name}: {mean:.3f} ± {error:.3f} by draws, {by_formula[name]:.3f} exactly")

# %%
a, b = np.meshgrid(np.geomspace(0.2, 5, 200), np.geomspace(0.2, 5, 200))
panels = {
    "the loss": (a * b - 1) ** 2,
    "averaged: noise of one size": isotropic(a, b),
    "averaged: of each weight's size": filter_scaled(a, b),
}
figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained", sharey=True)
for axis, (title, values) in zip(axes, panels.items(), strict=True):
    above = values - values.min()
    axis.contourf(a, b, above, levels=np.linspace(0, 2, 21), cmap="viridis_r")
    lowest = np.unravel_index(values.argmin(), values.shape)
    if title == "averaged: noise of one size":
        axis.plot(a[lowest], b[lowest], "r*", markersize=14, label="its one minimum")
        axis.legend()
    axis.set(xscale="log", yscale="log", title=title, xlabel="a", box_aspect=1)
    for ticks in (axis.xaxis, axis.yaxis):
        ticks.set_major_locator(plt.FixedLocator([0.2, 0.5, 1, 2, 5]))
        ticks.set_major_formatter("{x:g}")
        ticks.set_minor_locator(plt.NullLocator())
axes[0].set_ylabel("b")
png = io.BytesIO()
figure.savefig(png, format="png", dpi=80)
plt.close(figure)
Image(png.getvalue())

# %% [markdown]
# In the middle the valley has become a bowl around a = b; on the right it is still a
# valley, parallel to the axis of rescaling.
#
# ## 500 digits
#
# A perceptron with 100 hidden units, 3,000 gradients on batches of 100, cosine, five
# seeds that were not tuned on. Rate and decay of both, and our radius, are those that
# a search over the validation images chose
# ([results/filter_entropy](../results/filter_entropy/README.md)). One gradient a step
# for both.

# %%
SEEDS, STEPS, BATCH = 5, 3000, 100
digits = data.load("mnist-10k", num_train=500, pool=2)
images = jnp.asarray(digits.train.images).reshape(500, -1)
labels = jnp.asarray(digits.train.labels)
test_images = jnp.asarray(digits.test.images).reshape(-1, images.shape[1])
test_labels = jnp.asarray(digits.test.labels)


def init(key):
    keys = jax.random.split(key)
    dense = jax.nn.initializers.lecun_normal()
    return {
        "hidden": {"kernel": dense(keys[0], (196, 100)), "bias": jnp.zeros(100)},
        "out": {"kernel": dense(keys[1], (100, 10)), "bias": jnp.zeros(10)},
    }


def predict(params, x):
    hidden, out = params["hidden"], params["out"]
    x = jax.nn.relu(x @ hidden["kernel"] + hidden["bias"])
    return x @ out["kernel"] + out["bias"]


def loss(params, rows):
    logits = predict(params, images[rows])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()


def test_error(params):
    wrong = jnp.argmax(predict(params, test_images), -1) != test_labels
    return 100 * jnp.mean(wrong)


def train(tx, where):
    """Test errors of all seeds, trained together."""

    def one(key):
        params = init(key)

        def step(loop, t):
            params, state = loop
            order = jax.random.permutation(jax.random.fold_in(key, t // 5), 500)
            rows = jax.lax.dynamic_slice(order, [BATCH * (t % 5)], [BATCH])
            updates, state = tx.update(jax.grad(loss)(params, rows), state, params)
            return (optax.apply_updates(params, updates), state), None

        loop = (params, tx.init(params))
        (params, state), _ = jax.lax.scan(step, loop, jnp.arange(STEPS))
        return test_error(where(state, params))

    keys = jax.vmap(jax.random.key)(jnp.arange(1, 1 + SEEDS))
    return np.asarray(jax.jit(jax.vmap(one))(keys))


def cosine(rate):
    return optax.cosine_decay_schedule(rate, STEPS)


sgd = optax.chain(
    optax.add_decayed_weights(0.01), optax.sgd(cosine(0.08), 0.9, nesterov=True)
)
ours = eo.filter_entropy_sgd(cosine(0.04), radius=0.7, weight_decay=0.001)
errors = {
    "SGD": train(sgd, lambda state, params: params),
    "Filter-Entropy-SGD": train(ours, eo.eval_params),
}

# %%
for name, values in errors.items():
    spread = values.std(ddof=1) / SEEDS**0.5
    print(f"{name}: test error {values.mean():.2f} ± {spread:.2f} %, n = {SEEDS}")
difference = errors["Filter-Entropy-SGD"] - errors["SGD"]
standard_error = difference.std(ddof=1) / SEEDS**0.5
print(f"difference {difference.mean():.2f} ± {standard_error:.2f}, paired")
for name, (mean, error) in by_draws.items():
    assert abs(mean - by_formula[name]) < 4 * error
assert difference.mean() + 2 * standard_error < 0
