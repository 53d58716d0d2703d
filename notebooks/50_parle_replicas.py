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
# # Replicas on eight devices
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/entropy-optax/entropy_optax/blob/main/notebooks/50_parle_replicas.ipynb)
#
# Parle trains replicas of Entropy-SGD which meet once in L gradients: between two
# meetings nothing is communicated. We put eight replicas on eight devices, read that
# from the compiled program, and watch replicas that start far apart become one network.

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
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import entropy_optax as eo
from entropy_optax.experiments import data
from entropy_optax.experiments.collectives import collectives

# A CPU can be split into devices, which must be said before JAX runs.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
print(jax.device_count(), "devices")

# %% [markdown]
# ## Eight replicas
#
# A small net on 1,000 of the shipped digits. Every leaf of the params has a leading
# axis of replicas, and so have gradients and batches; the loss is that of one replica
# and knows nothing of it.

# %%
N, L, BATCH, OUTER = 8, 20, 50, 60
digits = data.load("mnist-10k", num_train=1000, pool=2)
images = jnp.asarray(digits.train.images).reshape(1000, -1)
labels = jnp.asarray(digits.train.labels)
test_images = jnp.asarray(digits.test.images).reshape(-1, images.shape[1])
test_labels = jnp.asarray(digits.test.labels)


def init(key):
    keys = jax.random.split(key)
    return {
        "w1": jax.random.normal(keys[0], (196, 64)) / 14,
        "b1": jnp.zeros(64),
        "w2": jax.random.normal(keys[1], (64, 10)) / 8,
        "b2": jnp.zeros(10),
    }


def predict(params, x):
    return jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def loss(params, batch):
    x, y = batch
    logits = predict(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def error(params):
    return 100 * jnp.mean(jnp.argmax(predict(params, test_images), -1) != test_labels)


def make_step(tx):
    def step(params, state, key):
        rows = jax.random.randint(key, (N, L, BATCH), 0, len(labels))
        batches = images[rows], labels[rows]
        first = jax.tree.map(lambda b: b[:, 0], batches)
        rest = jax.tree.map(lambda b: b[:, 1:], batches)
        grad_fn = jax.grad(loss)
        grads = jax.vmap(grad_fn)(params, first)
        updates, state = tx.update(grads, state, params, grad_fn=grad_fn, batches=rest)
        return optax.apply_updates(params, updates), state

    return step


# %% [markdown]
# The leading axis goes on the mesh: each device holds one replica, drawn from a start
# of its own. The coupling grows, and with it the replicas come together ("scoping").

# %%
mesh = jax.make_mesh((N,), ("replica",), (AxisType.Auto,))
on_replicas = NamedSharding(mesh, P("replica"))


def start(coupling):
    tx = eo.parle(
        1.0, num_replicas=N, coupling=coupling, gamma=0.1, num_steps=L,
        step_size=0.02, opaque_mode=True,
    )  # fmt: skip
    params = jax.vmap(init)(jax.random.split(jax.random.key(0), N))
    params = jax.device_put(params, on_replicas)
    return tx, params, jax.jit(tx.init)(params)


growing = eo.exponential_scoping(0.02, 0.08, max_gamma=0.9)
tx, params, state = start(growing)
compiled = (
    jax.jit(make_step(tx), donate_argnums=(0, 1))
    .lower(params, state, jax.random.key(1))
    .compile()
)
communication = collectives(compiled.as_text())
size = sum(4 * leaf[0].size for leaf in jax.tree.leaves(params))
for found in communication:
    print(found)
print(f"the params are {size:,} bytes")

# %% [markdown]
# One all-reduce of the params' size in an outer step, and none in the loop over the L
# gradients. Data parallel training would have L of them.
#
# ## Coupled, and not
#
# The same run twice: with the growing coupling, and with none. The centre of networks
# that never met is no network at all.


# %%
@jax.jit
def measure(params, state):
    center = eo.center_params(state, params)
    errors = error(center), jax.vmap(error)(params).mean()
    return eo.replica_distance(params), *errors


def train(coupling):
    tx, params, state = start(coupling)
    step = jax.jit(make_step(tx), donate_argnums=(0, 1))
    path = []
    for t in range(OUTER):
        params, state = step(params, state, jax.random.fold_in(jax.random.key(2), t))
        # Wait for all devices: where eight share a core or two, XLA can lock up once
        # one of them has 32 computations in its queue.
        path.append(jax.block_until_ready(measure(params, state)))
    print("gradients of each replica:", eo.num_gradients(state)[0])
    return np.array(path)


coupled, apart = train(growing), train(0.0)

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
steps = np.arange(1, OUTER + 1)
axes[0].semilogy(steps, coupled[:, 0], label="coupling grows")
axes[0].semilogy(steps, apart[:, 0], label="no coupling")
axes[0].set(xlabel="outer steps", ylabel="distance of the replicas to their centre")
axes[1].semilogy(steps, coupled[:, 1], label="centre, coupling grows")
axes[1].semilogy(steps, coupled[:, 2], "--", label="replicas, coupling grows")
axes[1].semilogy(steps, apart[:, 1], label="centre, no coupling")
axes[1].semilogy(steps, apart[:, 2], "--", label="replicas, no coupling")
axes[1].set(xlabel="outer steps", ylabel="test error, %")
for axis in axes:
    axis.legend()
png = io.BytesIO()
figure.savefig(png, format="png", dpi=80)
plt.close(figure)
Image(png.getvalue())

# %% [markdown]
# At the end the coupled replicas are one network, and it is no worse than they are.

# %%
print(f"centre: {coupled[-1, 1]:.2f} % coupled, {apart[-1, 1]:.2f} % not")
print(f"replicas: {coupled[-1, 2]:.2f} % coupled, {apart[-1, 2]:.2f} % not")
assert not any(found.in_loop for found in communication)
assert [found.num_bytes for found in communication] == [size]
assert coupled[-1, 0] < 0.05 * apart[-1, 0]
assert coupled[-1, 1] < coupled[-1, 2] + 0.5
assert apart[-1, 1] > coupled[-1, 1] + 20
