"""Algorithm 1 in PyTorch, as plainly as PyTorch allows: a rival, not a reference."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

NUM_STEPS = 20
GAMMA0, GAMMA1 = 1e-4, 1e-3
STEP_SIZE, TEMPERATURE, MOMENTUM, MEAN_DECAY = 1e-3, 5e-9, 0.9, 0.75


def mnistfc() -> nn.Module:
    """784-1024-1024-10 with ReLU and dropout."""
    return nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(784, 1024), nn.ReLU(), nn.Dropout(0.15)),
        *(nn.Linear(1024, 1024), nn.ReLU(), nn.Dropout(0.15)),
        nn.Linear(1024, 10),
    )


def lenet() -> nn.Module:
    """Convolutions of 20 and 50 features, pooling by 3 and 2, 500 units, BatchNorm."""
    return nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.BatchNorm2d(20), nn.MaxPool2d(3), nn.ReLU()),
        nn.Dropout(0.25),
        *(nn.Conv2d(20, 50, 5), nn.BatchNorm2d(50), nn.MaxPool2d(2), nn.ReLU()),
        nn.Dropout(0.25),
        *(nn.Flatten(), nn.Linear(200, 500), nn.ReLU(), nn.Dropout(0.25)),
        nn.Linear(500, 10),
    )


MODELS = {"mnistfc": mnistfc, "lenet": lenet}


def _gradient(model: Callable, params: list, images, labels) -> tuple:
    loss = nn.functional.cross_entropy(model(images), labels)
    return torch.autograd.grad(loss, params)


def sgd_steps(name: str, batch: int, *, compiled: bool) -> Callable[[], None]:
    """Return a function which takes NUM_STEPS steps of torch's own SGD-Nesterov."""
    model = MODELS[name]()
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, nesterov=True)
    images = torch.randn(NUM_STEPS, batch, 1, 28, 28)
    labels = torch.randint(0, 10, (NUM_STEPS, batch))

    def run() -> None:
        for k in range(NUM_STEPS):
            optimizer.zero_grad()
            nn.functional.cross_entropy(forward(images[k]), labels[k]).backward()
            optimizer.step()

    return run


def outer_steps(name: str, batch: int, *, compiled: bool) -> Callable[[], None]:
    """Return a function which takes one outer step of NUM_STEPS gradients."""
    model = MODELS[name]()
    forward = torch.compile(model) if compiled else model
    params = list(model.parameters())
    images = torch.randn(NUM_STEPS, batch, 1, 28, 28)
    labels = torch.randint(0, 10, (NUM_STEPS, batch))
    std = (2 * STEP_SIZE * TEMPERATURE) ** 0.5
    outer = 0

    def inner_step(x, mu, velocity, anchor, grads, noise, gamma) -> None:
        # The multi-tensor functions: one kernel for all params, as torch.optim uses.
        torch._foreach_mul_(velocity, MOMENTUM)
        torch._foreach_add_(velocity, grads)
        move = torch._foreach_mul(velocity, MOMENTUM)
        torch._foreach_add_(move, grads)
        pull = torch._foreach_sub(x, anchor)
        torch._foreach_mul_(pull, gamma)
        torch._foreach_add_(move, pull)
        torch._foreach_add_(x, move, alpha=-STEP_SIZE)
        torch._foreach_add_(x, noise, alpha=std)
        torch._foreach_lerp_(mu, x, 1 - MEAN_DECAY)

    if compiled:
        inner_step = torch.compile(inner_step)

    def run() -> None:
        nonlocal outer
        # A tensor: each new Python number would compile the step again.
        gamma = torch.tensor(GAMMA0 * (1 + GAMMA1) ** outer)
        with torch.no_grad():
            anchor = [p.clone() for p in params]
            mu = [p.clone() for p in params]
            velocity = [torch.zeros_like(p) for p in params]
        for k in range(NUM_STEPS):
            grads = _gradient(forward, params, images[k], labels[k])
            with torch.no_grad():
                # Not in inner_step: compiled, the draws take three times as long.
                noise = [torch.randn_like(p) for p in params]
                x = [p.data for p in params]
                inner_step(x, mu, velocity, anchor, grads, noise, gamma)
        with torch.no_grad():
            for p, m in zip(params, mu, strict=True):
                p.copy_(m)  # x - 1.0 (x - mu)
        outer += 1

    return run
