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
# # Local entropy, seen
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/entropy-optax/entropy_optax/blob/main/notebooks/20_local_entropy_landscape.ipynb)
#
# Entropy-SGD does not go down the loss but down minus its *local entropy*, a smoothed
# loss that prefers wide valleys to deep ones. We look at it in one dimension, as in the
# paper's Figure 2; watch three optimizers on a surface of two dimensions; and then use
# instruments on a real net, whose landscape nobody can see whole.

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
import numpy as np
import optax
from IPython.display import Image

import entropy_optax as eo
from entropy_optax import measure
from entropy_optax.experiments import data


def show(figure):
    """Return a figure as a picture."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=80)
    return Image(png.getvalue())


# %% [markdown]
# ## One dimension: the paper's Figure 2
#
# A sharp deep valley at 300 and a wide, less deep one at 650, with ripples. Minus local
# entropy at temperature T = 1 averages `exp(-f)` over a Gaussian of width
# `1 / sqrt(gamma)`: 32 grid points at the paper's first scope, 141 at its second. The
# triangles are the lowest points.

# %%
x = np.arange(1000)
loss = measure.paper_landscape(x)
smoothed = {
    gamma: measure.smoothed_landscape(loss, gamma=gamma, temperature=1.0)
    for gamma in (1e-3, 5e-5)
}
labels = {f"$-F$, $\\gamma$ = {gamma:g}": values for gamma, values in smoothed.items()}
show(measure.landscape_figure(x, loss, labels))

# %% [markdown]
# The lowest point of the loss is in the sharp valley. That of minus local entropy is in
# the wide one, at both scopes; the narrower scope still knows of the sharp valley, the
# wider has a single minimum and no ripples.
#
# Temperature matters as much as the scope. At T = 0 nothing is averaged, each point
# takes the best of its surroundings, and the deep valley wins again.

# %%
cold = measure.smoothed_landscape(loss, gamma=1e-3, temperature=0.0)
for name, values in {"f": loss, "T = 1": smoothed[1e-3], "T = 0": cold}.items():
    print(f"{name:6} lowest at {values.argmin()}")

# %% [markdown]
# ## Two dimensions: where do optimizers end?
#
# Again a sharp deep valley and a wide one. SGD, SAM and Entropy-SGD start from 500
# random places each and spend the same number of gradients (SAM's two count as two) at
# the same rate.

# %%
RATE, NUM_GRADIENTS, NUM_RUNS = 0.1, 4000, 500
ascent = optax.chain(optax.contrib.normalize(), optax.sgd(0.1))
optimizers = {
    "SGD": optax.sgd(RATE),
    "SAM": optax.contrib.sam(optax.sgd(RATE), ascent, sync_period=2),
    "Entropy-SGD": eo.entropy_sgd(
        1.0, gamma=1.0, num_steps=20, step_size=RATE, temperature=0.2, momentum=None
    ),
}
start_key, run_key = jax.random.split(jax.random.key(0))
starts = jax.random.uniform(start_key, (NUM_RUNS, 2), minval=-4, maxval=4)
starts = starts.at[:2].set(jnp.array([[-2.3, 1.0], [-1.1, -1.3]]))
valleys = {"sharp": (-1.5, 0.0), "wide": (1.5, 0.0)}
paths, shares = {}, {}
for name, tx in optimizers.items():
    points = measure.descent_paths(
        measure.two_valleys, tx, starts, num_gradients=NUM_GRADIENTS, key=run_key
    )
    paths[name] = points[:2, :101]
    bottoms = measure.settle(measure.two_valleys, points[:, -1])
    shares[name] = measure.valley_shares(bottoms, valleys)
    wide = shares[name]["wide"]
    print(
        f"{name:12} {100 * wide.value:5.1f} % in the wide valley"
        f" (95 % interval {100 * wide.low:.1f} to {100 * wide.high:.1f})"
    )

# %%
grid = np.linspace(-3.2, 3.2, 97), np.linspace(-2.2, 2.2, 67)
surface = np.stack(np.meshgrid(*grid, indexing="ij"), axis=-1)
surface = np.asarray(measure.two_valleys(jnp.asarray(surface)))
spacing = [line[1] - line[0] for line in grid]
smooth = measure.smoothed_landscape(surface, spacing, gamma=1.0, temperature=0.2)
surfaces = {"loss $f$": surface, "minus local entropy $-F$": smooth}
show(measure.valleys_figure(grid, surfaces, paths, valleys))

# %% [markdown]
# Rings are starts, dots are ends after 2,000 gradients, a white cross is the lowest
# point of the surface. Entropy-SGD goes where minus local entropy is low.
#
# **This is one rate.** With a larger rate, or with momentum, plain SGD cannot stay in
# the sharp valley either and ends in the wide one; so does gradient noise of the right
# size. `results/measure/landscape` has the whole sweep, with Entropy-SGD's noise and
# its averaging as separate controls: on this surface they, and SGD at its best rate, do
# as well. Local entropy makes the preference a choice, not an accident of the rate.
#
# ## A real net
#
# A perceptron of 13,258 weights on 500 small images, trained by SGD. Nobody sees 13,258
# dimensions; one looks along random directions whose filters are as long as the net's.

# %%
digits = data.load("mnist-10k", num_train=500, pool=2)
train = {
    "images": jnp.asarray(digits.train.images).reshape(500, -1),
    "labels": jnp.asarray(digits.train.labels),
}


def predict(params, batch):
    """Return logits."""
    hidden = jax.nn.relu(batch["images"] @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def criterion(logits, batch):
    """Return the mean cross-entropy."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    return losses.mean()


keys = jax.random.split(jax.random.key(0), 2)
params = {
    "w1": jax.random.normal(keys[0], (196, 64)) / 14,
    "b1": jnp.zeros(64),
    "w2": jax.random.normal(keys[1], (64, 10)) / 8,
    "b2": jnp.zeros(10),
}
f = measure.model_objective(predict, criterion, train, params)
tx = optax.sgd(0.05, momentum=0.9)


@jax.jit
def train_net(params):
    """Take 500 gradients on the whole set."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(f)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), length=500)[0][0]


net = train_net(params)
print(f"training loss {float(f(net)):.4f}")

# %% [markdown]
# The same function has other params: multiply the first layer by 5 and divide the
# second by 5, and a ReLU net computes what it did. A flatness that changes then is a
# number about the coordinates, not about the net (Dinh et al. 2017).

# %%
twin = net | {"w1": 5 * net["w1"], "b1": 5 * net["b1"], "w2": net["w2"] / 5}
alphas = np.linspace(-1, 1, 31)
key = jax.random.key(1)
slices = {
    name: measure.slice_loss(f, p, measure.filter_normalized_direction(key, p), alphas)
    for name, p in {"the net": net, "its rescaled twin": twin}.items()
}
show(measure.slice_figure(alphas, slices))

# %%
numbers = {}
for name, p in {"the net": net, "its rescaled twin": twin}.items():
    noise = {
        kind: measure.noise_curve(f, p, [0.1], kind=kind, key=key).values[0]
        for kind in ("isotropic", "multiplicative", "filter")
    }
    numbers[name] = noise | {
        "epsilon sharpness, %": measure.epsilon_sharpness(f, p, key=key).value,
        "adaptive sharpness": measure.adaptive_sharpness(
            f, p, radius=0.02, key=key
        ).value,
    }
for row in numbers["the net"]:
    one, two = (numbers[name][row] for name in numbers)
    print(f"{row:22} {one:10.4f} {two:10.4f}")

# %% [markdown]
# Loss under isotropic noise and epsilon sharpness change; multiplicative and
# filter-normalised noise and adaptive sharpness do not. And how the loss grows with
# the size of the noise:

# %%
curve = measure.noise_curve(
    f, net, np.linspace(0, 1, 9), kind="multiplicative", key=key
)
show(
    measure.noise_figure(
        {"SGD": curve}, xlabel=r"$\sigma$, in units of each weight", ylabel="loss"
    )
)

# %% [markdown]
# ## What was claimed
#
# The minimum of minus local entropy is in the wide valley at both of the paper's
# scopes; at one rate Entropy-SGD ends there more often than SGD; and two instruments in
# five are about the coordinates.

# %%
assert loss.argmin() == 300
assert all(abs(values.argmin() - 650) < 20 for values in smoothed.values())
assert cold.argmin() == 300
assert shares["SGD"]["wide"].high < shares["Entropy-SGD"]["wide"].low
one, two = numbers.values()
for row in ("multiplicative", "filter", "adaptive sharpness"):
    assert abs(one[row] - two[row]) < 0.01 * one[row]
for row in ("isotropic", "epsilon sharpness, %"):
    assert abs(one[row] - two[row]) > 0.1 * one[row]
print("all claims hold")
