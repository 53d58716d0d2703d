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
# # Entropy-SGD in your own training loop
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/entropy-optax/entropy_optax/blob/main/notebooks/00_quickstart.ipynb)
#
# A Flax nnx network, an ordinary loop of one gradient per step, real digits. We change
# one line to get Entropy-SGD, and then turn its main knob, the scope `gamma`, and watch
# what it does. Under three minutes on two processor cores.

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
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import entropy_optax as eo
from entropy_optax.experiments import data
from entropy_optax.training import nnx_eval_model

digits = data.load("mnist-10k")  # ships with the package
for split in ("train", "validation", "test"):
    print(f"{split:10} {len(getattr(digits, split).labels):6} images")

# %% [markdown]
# ## An ordinary loop
#
# Nothing below knows of Entropy-SGD but the one line that makes the optimizer.


# %%
class Net(nnx.Module):
    """A small fully connected network."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(784, 64, rngs=rngs)
        self.out = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, images):
        """Return logits of shape (batch, 10)."""
        return self.out(nnx.relu(self.hidden(images.reshape(images.shape[0], -1))))


def loss_fn(model, images, labels):
    """Return the mean cross-entropy."""
    logits = model(images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@nnx.jit
def train_step(model, optimizer, images, labels):
    """Take one gradient and one update."""
    loss, grads = nnx.value_and_grad(loss_fn)(model, images, labels)
    optimizer.update(model, grads)
    return loss


@nnx.jit
def error(model, images, labels):
    """Return the share of wrong answers in per cent."""
    return 100 * jnp.mean(jnp.argmax(model(images), axis=-1) != labels)


def train(tx, num_gradients=1000, batch_size=128, seed=0):
    """Train a fresh network; return it and its optimizer."""
    model = Net(nnx.Rngs(seed))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    rng = np.random.default_rng(seed)
    images, labels = jnp.asarray(digits.train.images), jnp.asarray(digits.train.labels)
    for _ in range(num_gradients):
        batch = jnp.asarray(rng.integers(len(labels), size=batch_size))
        train_step(model, optimizer, images[batch], labels[batch])
    return model, optimizer


# %% [markdown]
# ## SGD, and Entropy-SGD at the same number of gradients
#
# Within a cycle of `num_steps` gradients the network's parameters are the inner iterate
# x'. `nnx_eval_model` (or `eo.eval_params`) gives the outer iterate x, which is the one
# to evaluate and to keep.

# %%
NUM_GRADIENTS = 1000

sgd_model, _ = train(optax.sgd(0.02, momentum=0.9, nesterov=True), NUM_GRADIENTS)

# tx = optax.sgd(0.02, momentum=0.9, nesterov=True)
tx = eo.entropy_sgd(1.0, step_size=0.02, momentum=0.9, gamma=1.0, num_steps=20)
entropy_model, optimizer = train(tx, NUM_GRADIENTS)
spent = int(eo.num_gradients(nnx.as_pure(optimizer.opt_state)))

test = jnp.asarray(digits.test.images), jnp.asarray(digits.test.labels)
sgd_error = float(error(sgd_model, *test))
entropy_error = float(error(nnx_eval_model(entropy_model, optimizer), *test))
print(f"SGD          {sgd_error:.2f} % test error after {NUM_GRADIENTS} gradients")
print(f"Entropy-SGD  {entropy_error:.2f} % test error after {spent} gradients")

# %% [markdown]
# One seed and untuned settings: read no winner into this. `make quickstart` compares
# tuned settings over several seeds.
#
# ## The knob: the scope
#
# A larger `gamma` holds x' closer to x, so the valley is looked at more narrowly. The
# optimizer's state keeps the mean distance ||x' - x|| of the last cycle. Where
# `step_size * gamma * num_steps` is well below 1 the pull is inactive, and the curve is
# flat.

# %%
gammas = [1e-3, 0.1, 1.0, 10.0, 50.0]
displacements = []
for gamma in gammas:
    tx = eo.entropy_sgd(1.0, step_size=0.02, momentum=0.9, gamma=gamma, num_steps=20)
    _, optimizer = train(tx, 400)
    state = nnx.as_pure(optimizer.opt_state)
    displacements.append(float(optax.tree.get(state, "displacement")))
    print(f"gamma {gamma:8.4f}   mean ||x' - x|| {displacements[-1]:.3f}")

# %%
figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
axis.loglog(gammas, displacements, "o-", color="#0072b2")
axis.set(xlabel=r"scope $\gamma$", ylabel=r"mean $\|x' - x\|$ in the last cycle")
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## What was claimed
#
# Entropy-SGD dropped into an unchanged loop spends the gradients that SGD does, learns
# the digits about as well, and its scope holds x' near x.

# %%
assert spent == NUM_GRADIENTS
assert entropy_error < 10.0
assert abs(entropy_error - sgd_error) < 2.0
assert displacements[-1] < 0.5 * displacements[0]
print("all claims hold")
