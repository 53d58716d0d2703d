"""Each optimizer, through the real runner, against its formulas in plain NumPy."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_task import ByHand, ToyTask

import entropy_optax as eo
from entropy_optax.experiments import (
    checks,
    filter_study,
    perturbed,
    rates,
    runner,
    settings,
)
from entropy_optax.experiments.hyperparameters import progress, rate_field, resolved
from entropy_optax.experiments.settings import EntropySGDSettings, Settings

SEED, N, EVERY = 3, 12, 6
BASE = Settings(
    batch_size=2,
    num_gradients=N,
    report_every=EVERY,
    evaluate_every=EVERY,
    sgd=settings.SGDSettings(learning_rate=0.2, momentum=0.8, weight_decay=0.1),
    adam=settings.AdamSettings(learning_rate=0.1, b1=0.8, b2=0.95, weight_decay=0.2),
    sam=settings.SAMSettings(0.2, 0.8, 0.1, radius=0.3),
    asam=settings.ASAMSettings(0.2, 0.8, 0.1, radius=0.3, eta=0.05),
    lookahead=settings.LookaheadSettings(0.2, 0.8, 0.1, sync_period=3),
    ema=settings.EMASettings(0.2, 0.8, 0.1, average_decay=0.7),
    schedule_free=settings.ScheduleFreeSettings(0.4, 0.8, 0.1, warmup=0.25),
)
# Every term is felt; no noise, which is the sampler's own tests' business.
LOCAL = EntropySGDSettings(
    step_size=0.2,
    gamma=0.8,
    gamma_growth=0.3,
    num_steps=3,
    temperature=0.0,
    momentum=0.7,
    mean_decay=0.4,
    learning_rate=0.9,
    outer_momentum=0.3,
    weight_decay=0.1,
    outer_weight_decay=0.05,
)


def train(name, chosen):
    checks.check(dataclasses.replace(chosen, optimizer=(name,)))
    task = ToyTask()
    run = runner.Experiment(chosen, task).run(name, SEED)
    assert run.gradients == N  # as the optimizer has counted
    # As the model has counted, and the two points on the test split come last.
    taken = [(split, int(at["taken"])) for split, at in task.scored]
    assert taken[:2] == [("validation", EVERY), ("validation", N)]
    assert [split for split, _ in taken[2:]] == ["test", "test"]
    return task.points()


def clip(gradient, chosen):
    if chosen.clip_norm is not None:
        gradient = gradient * min(1, chosen.clip_norm / np.linalg.norm(gradient))
    if chosen.clip_value is not None:
        gradient = np.clip(gradient, -chosen.clip_value, chosen.clip_value)
    return gradient


def falling(chosen, updates, t):
    shape = {
        "cosine": lambda: (1 + math.cos(math.pi * t / updates)) / 2,
        "step": lambda: (
            chosen.step_factor ** sum(t >= int(at * updates) for at in chosen.step_at)
        ),
        "constant": lambda: 1.0,
    }
    return shape[chosen.rate_schedule]()


class Nesterov:
    """v <- m v + g and a step along g + m v."""

    def __init__(self, momentum):
        self.momentum, self.v = momentum, 0.0

    def __call__(self, g):
        self.v = self.momentum * self.v + g
        return g + self.momentum * self.v


class Adam:
    def __init__(self, b1, b2=0.999):
        self.b1, self.b2, self.m, self.v, self.t = b1, b2, 0.0, 0.0, 0

    def __call__(self, g):
        self.t += 1
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g**2
        m, v = self.m / (1 - self.b1**self.t), self.v / (1 - self.b2**self.t)
        return m / (np.sqrt(v) + 1e-8)


def sgd(problem, chosen):
    x, group = problem.start, chosen.sgd
    direction = Nesterov(group.momentum)
    for t in range(N):
        g = clip(problem.gradient(x), chosen) + group.weight_decay * x
        x = x - group.learning_rate * falling(chosen, N, t) * direction(g)
        yield x


def adam(problem, chosen):
    x, group = problem.start, chosen.adam
    direction = Adam(group.b1, group.b2)
    for t in range(N):
        step = direction(clip(problem.gradient(x), chosen)) + group.weight_decay * x
        x = x - group.learning_rate * falling(chosen, N, t) * step
        yield x


def sam(problem, chosen):
    return ascending(problem, chosen, chosen.sam, lambda x: 1.0)


def asam(problem, chosen):
    group = chosen.asam
    return ascending(problem, chosen, group, lambda x: np.abs(x) + group.eta)


def ascending(problem, chosen, group, scale):
    x = problem.start
    direction = Nesterov(group.momentum)
    for t in range(N // 2):
        uphill = problem.gradient(x, number=t) * scale(x)
        yield x  # no update yet
        away = x + group.radius * scale(x) * uphill / np.linalg.norm(uphill)
        # The same minibatch and the same dropout; weight decay belongs to x.
        g = clip(problem.gradient(away, number=t), chosen) + group.weight_decay * x
        x = x - group.learning_rate * falling(chosen, N // 2, t) * direction(g)
        yield x


def lookahead(problem, chosen):
    group = chosen.lookahead
    slow = fast = problem.start
    direction = Nesterov(group.momentum)
    for t in range(N):
        g = clip(problem.gradient(fast), chosen) + group.weight_decay * fast
        fast = fast - group.learning_rate * falling(chosen, N, t) * direction(g)
        if (t + 1) % group.sync_period == 0:
            slow = slow + group.slow_step_size * (fast - slow)
            fast = slow
        yield slow


def ema(problem, chosen):
    decay, iterates = chosen.ema.average_decay, []
    for x in sgd(problem, dataclasses.replace(chosen, sgd=chosen.ema)):
        iterates.append(x)
        # The bias-corrected sum, written out.
        weights = decay ** np.arange(len(iterates))[::-1]
        yield weights @ np.array(iterates) / weights.sum()


def schedule_free(problem, chosen):
    group = chosen.schedule_free
    warmup = int(group.warmup * N)
    rate = lambda t: group.learning_rate * min(1, t / warmup)
    x = z = y = problem.start
    total = 0.0
    for t in range(N):
        g = clip(problem.gradient(y), chosen) + group.weight_decay * y
        z = z - rate(t) * g
        # Optax weighs a step by the next one's rate: the first, of rate 0, counts too.
        weight = rate(t + 1) ** 2
        total += weight
        x = x + weight / total * (z - x)
        y = group.b1 * x + (1 - group.b1) * z
        yield x


def local_entropy(name, problem, chosen):
    group = getattr(chosen, name)
    x = problem.start
    nesterov = Nesterov(group.outer_momentum)
    outer = Adam(group.outer_momentum) if group.outer == "adam" else nesterov
    for t in range(N // group.num_steps):
        falls = falling(chosen, N // group.num_steps, t)
        inner_rate = group.step_size * (falls if group.anneal != "outer" else 1)
        outer_rate = group.learning_rate * (falls if group.anneal != "inner" else 1)
        gamma = group.gamma * (1 + group.gamma_growth) ** t
        at, mean, iterates = x, x, []
        inner = Nesterov(group.momentum)  # restarted
        for k in range(group.num_steps):
            g = clip(problem.gradient(at), chosen) + group.weight_decay * at
            at = at - inner_rate * (inner(g) + gamma * (at - x))
            iterates.append(at)
            mean = group.mean_decay * mean + (1 - group.mean_decay) * at
            if group.plain_average:
                mean = np.mean(iterates, axis=0)
            if k < group.num_steps - 1:
                yield x
        x = x - outer_rate * outer(x - mean + group.outer_weight_decay * x)
        yield x


def reset_alone(problem, chosen):
    """SGD that forgets its momentum every L gradients, without any local entropy."""
    group, x = chosen.reset_alone, problem.start
    direction = Nesterov(group.momentum)
    for t in range(N):
        if t % group.num_steps == 0:
            direction = Nesterov(group.momentum)
        updates = N // group.num_steps
        rate = group.step_size * falling(chosen, updates, t // group.num_steps)
        x = x - rate * direction(problem.gradient(x) + group.weight_decay * x)
        yield x


def agree(name, by_hand, chosen):
    problem = ByHand(SEED)
    wanted = list(by_hand(problem, chosen))
    assert problem.taken == N  # equal numbers of gradients for all
    got = train(name, chosen)
    wanted = [wanted[EVERY - 1], wanted[N - 1]]
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-6)
    # The problem moves enough for that to say something.
    assert np.linalg.norm(wanted[-1] - problem.start) > 0.1


RIVALS = (sgd, adam, sam, asam, lookahead, ema, schedule_free)


@pytest.mark.parametrize("by_hand", RIVALS, ids=lambda function: function.__name__)
def test_rivals(by_hand):
    agree(by_hand.__name__, by_hand, BASE)


@pytest.mark.parametrize(
    ("by_hand", "change"),
    [
        (sgd, {"clip_norm": 0.5}),
        (sgd, {"clip_value": 0.2, "rate_schedule": "step", "step_at": (0.25, 0.75)}),
        (adam, {"clip_value": 0.2, "rate_schedule": "constant"}),
        (sam, {"clip_norm": 0.5, "rate_schedule": "step", "step_at": (0.5, 0.5001)}),
    ],
)
def test_rivals_with_clips_and_other_schedules(by_hand, change):
    agree(by_hand.__name__, by_hand, dataclasses.replace(BASE, **change))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"anneal": "outer"},
        {"anneal": "both"},
        {"plain_average": True},
        {"outer": "adam", "learning_rate": 0.1, "anneal": "outer"},
        {"num_steps": 1},
    ],
    ids=str,
)
def test_local_entropy(change):
    group = dataclasses.replace(LOCAL, **change)
    chosen = dataclasses.replace(BASE, entropy_sgd=group)
    agree("entropy_sgd", functools.partial(local_entropy, "entropy_sgd"), chosen)


def ivon_without_noise(problem, chosen):
    """Momentum on a curvature that stays what it was, for b2 is 1."""
    x, group, mean = problem.start, chosen.ivon, 0.0
    size = group.curvature + group.weight_decay
    for t in range(N):
        mean = group.b1 * mean + (1 - group.b1) * clip(problem.gradient(x), chosen)
        g = mean / (1 - group.b1 ** (t + 1)) + group.weight_decay * x
        x = x - group.learning_rate * falling(chosen, N, t) * g / size
        yield x


def test_ivon_without_noise():
    group = settings.IVONSettings(0.2, 0.8, 1 - 1e-12, 0.1, ess=1e12, curvature=0.7)
    agree("ivon", ivon_without_noise, dataclasses.replace(BASE, ivon=group))


def without_radius(problem, chosen):
    """SGD on the mean gradient of so many minibatches."""
    x, group = problem.start, chosen.filter_entropy
    direction, count = Nesterov(group.momentum), group.perturbations
    for t in range(N // count):
        gradients = []
        for _ in range(count):
            gradients.append(clip(problem.gradient(x), chosen))
            if len(gradients) < count:
                yield x
        g = np.mean(gradients, axis=0) + group.weight_decay * x
        x = x - group.learning_rate * falling(chosen, N // count, t) * direction(g)
        yield x


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"perturbations": 3},
        {"perturbations": 2, "antithetic": True},
        {"splits": 2},
        {"geometry": "none"},
    ],
    ids=str,
)
def test_filter_entropy_without_radius_is_sgd(change):
    group = settings.FilterEntropySettings(0.2, 0.8, 0.1, radius=0.0, **change)
    chosen = dataclasses.replace(BASE, filter_entropy=group)
    agree("filter_entropy", without_radius, chosen)


def test_its_average_without_radius_is_that_of_sgd():
    group = settings.FilterEntropySettings(0.2, 0.8, 0.1, radius=0.0, average_decay=0.7)
    theirs = settings.EMASettings(0.2, 0.8, 0.1, average_decay=0.7)
    chosen = dataclasses.replace(BASE, filter_entropy=group, ema=theirs)
    points = train("filter_entropy", chosen)
    np.testing.assert_allclose(points, train("ema", chosen), rtol=1e-6)
    assert not np.allclose(points, train("sgd", chosen), rtol=1e-4)


@functools.cache
def plain():
    group = settings.FilterEntropySettings(0.05, 0.8, 0.01, 0.3, geometry="leaf")
    return train("filter_entropy", dataclasses.replace(BASE, filter_entropy=group))


@pytest.mark.parametrize(
    "form",
    [
        "radius doubles",
        "antithetic pair a step",
        "2 antithetic parts of each batch",
        "Langevin, L = 5, T = 1",
        "mean of iterates, 0.99",
        "AdamW outside",
        "Muon outside",
        "one size for all weights",
    ],
)
def test_forms_of_filter_entropy(form):
    """Each takes N gradients, moves, and is another method than the plain one."""
    # The toy's params have no filters, and its minibatches two examples.
    own: Any = {"radius": 0.3, "geometry": "leaf"} | filter_study.FORMS[form]
    own |= {n: 2 for n in ("splits", "perturbations", "num_steps") if n in own}
    group = settings.FilterEntropySettings(0.05, 0.8, 0.01, **own)
    points = train("filter_entropy", dataclasses.replace(BASE, filter_entropy=group))
    assert np.isfinite(points).all()
    assert not np.allclose(points, plain(), rtol=1e-6)


def test_adaptive_ascent_does_not_see_how_weights_are_scaled():
    """w -> a w, g -> g / a: the way uphill is a times as long, where eta is 0."""
    w = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([0.5])}
    g = {"a": jnp.array([0.3, 0.1]), "b": jnp.array([-1.0])}
    a = {"a": jnp.float32(4.0), "b": jnp.float32(0.5)}
    tx: Any = perturbed.ascend_adaptively(0.2, 0.0)
    here, _ = tx.update(g, tx.init(w), w)
    moved = jax.tree.map(jnp.multiply, a, w)
    there, _ = tx.update(jax.tree.map(jnp.divide, g, a), tx.init(w), moved)
    for name in w:
        np.testing.assert_allclose(there[name], a[name] * here[name], rtol=1e-6)
    units = jax.tree.map(jnp.divide, here, w)
    assert optax.tree.norm(units) == pytest.approx(0.2, rel=1e-6)
    zero, _ = tx.update(jax.tree.map(jnp.zeros_like, g), tx.init(w), w)
    np.testing.assert_array_equal(zero["a"], 0)


@pytest.mark.parametrize("clips", [{"clip_norm": 0.5}, {"clip_value": 0.2}], ids=str)
def test_clips_act_within_the_inner_loop(clips):
    chosen = dataclasses.replace(BASE, entropy_sgd=LOCAL, **clips)
    agree("entropy_sgd", functools.partial(local_entropy, "entropy_sgd"), chosen)


def test_entropy_adam_is_entropy_sgd_with_adam_outside():
    default = Settings().entropy_adam
    assert default.outer == "adam"
    group = dataclasses.replace(LOCAL, outer="adam", learning_rate=0.1, anneal="outer")
    chosen = dataclasses.replace(BASE, entropy_adam=group)
    agree("entropy_adam", functools.partial(local_entropy, "entropy_adam"), chosen)


def test_averaging_alone_is_entropy_sgd_without_pull_and_noise():
    default = Settings().averaging_alone
    assert default == dataclasses.replace(
        Settings().entropy_sgd, gamma=0.0, temperature=0.0
    )
    group = dataclasses.replace(LOCAL, gamma=0.0)
    chosen = dataclasses.replace(BASE, averaging_alone=group, entropy_sgd=group)
    got, wanted = (train(name, chosen) for name in ("averaging_alone", "entropy_sgd"))
    np.testing.assert_array_equal(got, wanted)
    pulled = dataclasses.replace(BASE, entropy_sgd=LOCAL)
    assert not np.allclose(got, train("entropy_sgd", pulled), rtol=1e-3)


def test_reset_alone_is_sgd_whose_momentum_restarts():
    group = dataclasses.replace(Settings().reset_alone, num_steps=3, weight_decay=0.1)
    assert (group.gamma, group.temperature, group.mean_decay) == (0, 0, 0)
    agree("reset_alone", reset_alone, dataclasses.replace(BASE, reset_alone=group))


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
def test_noise_depends_on_the_seed_and_the_temperature(noise):
    task = ToyTask()
    experiment = runner.Experiment(BASE, task)

    def point(temperature, seed):
        group = dataclasses.replace(LOCAL, temperature=temperature, noise=noise)
        chosen = dataclasses.replace(BASE, entropy_sgd=group)
        experiment.run("entropy_sgd", seed, chosen)
        return task.points()[-1]

    moved = [np.subtract(point(1e-6, seed), point(0.0, seed)) for seed in (3, 4)]
    for move in moved:
        # sqrt(2 eta' T) is 6e-4; three inner steps are averaged.
        assert 5e-5 < np.abs(move).max() < 5e-3
    assert not np.allclose(moved[0], moved[1], rtol=0.1)
    np.testing.assert_array_equal(point(1e-6, 3), point(1e-6, 3))


def test_reported_rates_are_those_of_the_formulas():
    chosen = dataclasses.replace(BASE, entropy_sgd=LOCAL)
    for t in range(N):
        rate = functools.partial(rates.current_rate, settings=chosen, gradients=t)
        assert rate("sgd") == pytest.approx(0.2 * falling(chosen, N, t), abs=1e-6)
        sam_rate = 0.2 * falling(chosen, N // 2, t // 2)
        assert rate("sam") == pytest.approx(sam_rate, abs=1e-6)
        inner = 0.2 * falling(chosen, N // 3, t // 3)
        assert rate("entropy_sgd") == pytest.approx(inner, abs=1e-6)
        assert rate("schedule_free") == pytest.approx(0.4 * min(1, t / 3))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_steps": 1},
        {"mean_decay": 0.0},
        {"plain_average": True},
        {"momentum": 0.0, "learning_rate": 0.5},
        {"outer_momentum": 0.5, "num_steps": 5},
    ],
)
def test_effective_rate_is_that_of_sgd_along_a_constant_gradient(fields):
    """By the optimizer itself, over enough outer steps to forget the start."""
    fields = {"momentum": 0.9, "mean_decay": 0.75, "num_steps": 20} | fields
    group = EntropySGDSettings(gamma=0.0, temperature=0.0, effective_rate=0.03)
    group = dataclasses.replace(group, **fields)
    tx = eo.entropy_sgd(
        group.learning_rate,
        gamma=0.0,
        num_steps=group.num_steps,
        step_size=resolved(group).step_size,
        temperature=0.0,
        momentum=group.momentum or None,
        outer_momentum=group.outer_momentum or None,
        mean_decay=(lambda k: k / (k + 1)) if group.plain_average else group.mean_decay,
    )
    moved = {}
    params = jnp.zeros(())
    state = tx.init(params)
    update = jax.jit(tx.update)
    for n in range(1, 40 * group.num_steps + 1):
        updates, state = update(jnp.ones(()), state, params)
        params = optax.apply_updates(params, updates)
        moved[n] = -np.asarray(params).item()
    length = group.num_steps
    gain = (moved[40 * length] - moved[30 * length]) / (10 * length)
    assert gain == pytest.approx(10 * 0.03, rel=1e-3)


@pytest.mark.parametrize("name", settings.GROUPS)
def test_rate_field_is_the_rate_of_sgd(name):
    group = getattr(Settings(), name)
    field = rate_field(group)
    moved = dataclasses.replace(group, **{field: 0.03})
    if isinstance(group, EntropySGDSettings):
        # Not the outer rate, which says how far x moves towards the mean.
        assert resolved(moved).learning_rate == group.learning_rate
        assert resolved(moved).step_size * progress(group) == pytest.approx(0.03)
    else:
        assert moved.learning_rate == 0.03


def test_pull_is_step_size_times_gamma():
    group = EntropySGDSettings(effective_rate=0.08, pull=0.1)
    found = resolved(group)
    assert found.step_size * found.gamma == pytest.approx(0.1)
    assert (found.effective_rate, found.pull) == (None, None)
    assert resolved(found) == found
    only = resolved(EntropySGDSettings(step_size=0.5, pull=0.1))
    assert (only.step_size, only.gamma) == (0.5, 0.2)
    with pytest.raises(settings.SettingsError, match="effective-rate: wanted --"):
        checks.check(
            dataclasses.replace(
                Settings(), entropy_sgd=dataclasses.replace(group, outer="adam")
            )
        )


def test_a_constant_rate_stays():
    falling_rate = dataclasses.replace(BASE, rate_schedule="cosine")
    for name, by_hand in (("ema", ema), ("lookahead", lookahead)):
        group = dataclasses.replace(getattr(BASE, name), constant_rate=True)
        chosen = dataclasses.replace(falling_rate, **{name: group})
        constant = dataclasses.replace(chosen, rate_schedule="constant")
        np.testing.assert_allclose(
            train(name, chosen)[-1],
            list(by_hand(ByHand(SEED), constant))[-1],
            rtol=1e-4,
        )
        assert rates.current_rate(name, chosen, 6) == pytest.approx(0.2)
