"""Parle in the runner, on one device and on several; and on several processes."""

import dataclasses
import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from rich.console import Console

from entropy_optax.experiments import (
    checks,
    data,
    distributed,
    meshes,
    methods,
    settings,
    worker,
)
from entropy_optax.experiments.cli import main
from entropy_optax.experiments.collectives import collectives
from entropy_optax.experiments.compiled import compile_step, draw, num_draws
from entropy_optax.experiments.runner import Experiment
from entropy_optax.experiments.settings import SettingsError, from_dict
from entropy_optax.experiments.share import DistributedSettings, Share
from entropy_optax.experiments.tasks import make_task

NUMBERS = {
    "model": "mlp_small", "data": "tiny", "num_gradients": 24, "report_every": 12,
    "evaluate_every": 12, "batch_size": 8, "optimizer": ["parle"], "replicas": 2,
    "parle": {"num_steps": 4, "step_size": 0.02, "temperature": 1e-6},
    "entropy_sgd": {"num_steps": 4, "step_size": 0.02, "temperature": 1e-6},
}  # fmt: skip


def run(optimizer="parle", keep=None, **changes):
    chosen = from_dict(settings.Settings, {**NUMBERS, **changes})
    checks.check(dataclasses.replace(chosen, optimizer=(optimizer,)))
    return Experiment(chosen, make_task(chosen)).run(optimizer, 0, keep=keep)


def ends(optimizer="parle", **changes):
    """Return the params that are evaluated last."""
    kept = []
    found = run(optimizer, lambda *args: kept.append(args[2]), **changes)
    return found, kept[0]


def close(actual, desired, rtol=1e-4):
    jax.tree.map(
        lambda a, d: np.testing.assert_allclose(
            np.asarray(a), np.asarray(d), rtol=rtol, atol=1e-6
        ),
        actual,
        desired,
    )


def test_one_replica_is_entropy_sgd_in_the_runner_too(data_folder):
    one, params = ends(replicas=1)
    alone, wanted = ends("entropy_sgd")
    close(params, wanted)
    assert one.curve == alone.curve
    assert one.gradients == alone.gradients == 24


def test_the_gradients_of_all_replicas_count(data_folder):
    found, center = ends()
    assert found.gradients == 2 * 24
    assert [gradients for gradients, _ in found.curve] == [24, 48]
    _, one = ends(replicas=1)
    assert jax.tree.map(jnp.shape, center) == jax.tree.map(jnp.shape, one)


def begin(optimizer="parle", **changes):
    """Return a compiled step, its first arrays and the other arguments."""
    chosen = from_dict(settings.Settings, {**NUMBERS, **changes})
    task = make_task(chosen)
    step = compile_step(task, optimizer, chosen, 1)
    traced, _ = methods.split_settings(optimizer, chosen)
    traced = jax.tree.map(lambda leaf: leaf[None], traced)
    draws = num_draws(chosen, optimizer, chosen.report_every)
    indices = draw([task.indices(0)], draws)
    arrays = step.init(traced, jax.random.key(0)[None])
    return step, arrays, (traced, step.place(task.data), indices)


def test_each_replica_has_its_own_batches(data_folder):
    """They start alike and, without noise and coupling, part."""
    quiet = NUMBERS["parle"] | {"coupling": 0.0, "temperature": 0.0}
    step, arrays, rest = begin(parle=quiet)
    for leaf in jax.tree.leaves(arrays["params"]):
        np.testing.assert_array_equal(leaf[0, 0], leaf[0, 1])
    arrays, _ = step.advance(arrays, *rest)
    first, second = (
        jax.tree.map(lambda leaf, a=a: leaf[0, a], arrays["params"]) for a in (0, 1)
    )
    apart = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), first, second)
    assert min(jax.tree.leaves(apart)) > 1e-4


@pytest.mark.parametrize(
    ("optimizer", "devices", "replicas", "shape", "wanted"),
    [
        # Params, and the loss that is reported, once in an outer step of 4 gradients.
        ("parle", 2, 2, (2, 1), [(1, 4, 3)]),
        # And each replica's gradients within its group of devices.
        ("parle", 4, 2, (2, 2), [(1, 4, 3), (1, 4, 9), (1, 4, 3)]),
        # Nothing divides 3 and 4: all replicas are on each device.
        ("parle", 4, 3, (1, 4), [(3, 12, 3), (3, 12, 9)]),
        ("sgd", 4, 1, (1, 4), [(1, 4, 12)]),
    ],
)
def test_several_devices_give_one_devices_result(
    data_folder, optimizer, devices, replicas, shape, wanted
):
    """What is communicated, in params and bytes, and how often in 12 gradients."""
    changes = {"devices": devices, "replicas": replicas}
    chosen = from_dict(settings.Settings, {**NUMBERS, **changes})
    assert checks.mesh_shape(chosen, optimizer) == shape
    step, arrays, (_, placed, _) = begin(optimizer, **changes)
    leaves = jax.tree.leaves(arrays["params"])
    spec = P(None, "replica") if optimizer == "parle" else P()
    for leaf in leaves:
        assert leaf.sharding.spec == spec
        assert len(leaf.sharding.device_set) == devices
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(placed))
    size = sum(leaf.nbytes for leaf in leaves) // replicas
    program: Any = step.advance
    found = [(c.num_bytes, c.trips) for c in collectives(program.as_text())]
    assert found == [(n * size + extra, trips) for n, extra, trips in wanted]
    many, params = ends(optimizer, devices=devices, replicas=replicas)
    one, wanted = ends(optimizer, replicas=replicas)
    close(params, wanted, rtol=1e-3)
    assert many.gradients == one.gradients


def test_the_coupling_of_the_settings_is_felt(data_folder):
    """Without it another program is compiled."""
    _, apart = ends(parle={**NUMBERS["parle"], "coupling": 0.0})
    _, pulled = ends(parle={**NUMBERS["parle"], "coupling": 0.5})
    assert max(
        float(jnp.abs(a - b).max())
        for a, b in zip(jax.tree.leaves(apart), jax.tree.leaves(pulled), strict=True)
    ) > 1e-6  # fmt: skip


def test_the_command_line_on_a_forced_mesh(tmp_path):
    """A process of its own, for the CPU is split before JAX runs."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    program = f"""
import sys
from entropy_optax.experiments.cli import main
from entropy_optax.experiments.collectives import collectives
from entropy_optax.experiments.compiled import compile_step, draw, num_draws
import jax
code = main(["train", "--model", "mlp_small", "--optimizer", "parle", "--replicas", "3",
    "--devices", "4", "--seeds", "0", "--num-gradients", "40", "--evaluate-every", "40",
    "--num-train", "400", "--out", {str(tmp_path / "run")!r}])
assert jax.device_count() == 4
sys.exit(code)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Parle" in done.stdout
    assert "parle: 4 devices, 1 along the replicas and 4 along each" in done.stdout
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    assert record["settings"]["devices"] == 4
    assert record["runs"][0]["gradients"] == 120


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--replicas", "3", "--devices", "4", "--batch-size", "30"],
            "--batch-size: got 30, wanted a multiple of 4: 4 devices and 3 replicas of"
            " parle are a mesh of 1 along the replicas and 4 along each batch",
        ),
        (["--replicas", "0"], "--replicas: got 0, wanted 1 or more"),
        (["--devices", "0"], "--devices: got 0, wanted 1 or more"),
        (["--devices", "64"], "--devices: got 64, JAX has 8 (cpu)"),
    ],
)
def test_errors_name_the_mismatch(flags, message, capsys, tmp_path):
    arguments = ["train", "--optimizer", "parle", "--out", str(tmp_path), *flags]
    assert main(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


# Several processes.
TINY = DistributedSettings(
    data="tiny", replicas=2, batch_size=8, num_outer=12, num_steps=4, save_every=2,
    temperature=1e-6,
)  # fmt: skip


def test_every_image_has_one_position_and_each_epoch_takes_it_once():
    plan = Share(100, dataclasses.replace(TINY, replicas=3, batch_size=4))
    assert plan.per_position == 8
    places = list(itertools.product(range(3), range(8), range(4)))
    seen = [[plan.image(a, 8 * epoch + k, j) for a, k, j in places] for epoch in (0, 1)]
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(96))
    assert seen[0] != seen[1]
    assert {plan.image(1, k, 2) % 12 for k in range(20)} == {6}


def test_a_process_reads_the_rows_of_its_own_devices_alone(tmp_path):
    np.save(tmp_path / distributed.IMAGES, np.arange(64.0).reshape(64, 1))
    np.save(tmp_path / distributed.LABELS, np.arange(64))
    mesh = Mesh(
        np.array(jax.devices()[:4]).reshape(2, 2), ("replica", "batch"),
        axis_types=(AxisType.Auto,) * 2,
    )  # fmt: skip
    reader = worker.Reader(tmp_path, TINY, mesh)
    images, labels = reader.batches(1)
    assert images.shape == (2, 4, 8, 1)
    plan = Share(64, TINY)
    wanted = [
        [[plan.image(a, 4 + k, j) for j in range(8)] for k in range(4)] for a in (0, 1)
    ]
    np.testing.assert_array_equal(labels, wanted)
    np.testing.assert_array_equal(images[..., 0], wanted)
    assert reader.rows == set(np.ravel(wanted).tolist())


def command(out, processes, *flags):
    names = (
        "data",
        "replicas",
        "batch_size",
        "num_outer",
        "num_steps",
        "save_every",
        "temperature",
    )
    own = [f"--{n.replace('_', '-')}={getattr(TINY, n)}" for n in names]
    return ["distribute", *own, f"--processes={processes}", f"--out={out}", *flags]


@pytest.fixture(scope="module")
def tiny_data(tmp_path_factory, make_tiny):
    """The data set `tiny` for all tests of several processes."""
    folder = tmp_path_factory.mktemp("data")
    make_tiny(folder / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENTROPY_OPTAX_DATA", str(folder))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_data):
    """A run of two processes without a stop."""
    out = tmp_path_factory.mktemp("distributed") / "whole"
    assert main(command(out, 2)) == 0
    return out


def params(out):
    with np.load(out / "params.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def kill_after_a_checkpoint(out, processes, whole_group=True):
    """Start a run in a process group of its own and kill it in the middle."""
    program = [sys.executable, "-m", "entropy_optax.experiments"]
    group = subprocess.Popen(
        [*program, *command(out, processes)],
        start_new_session=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    names = lambda: (path.name for path in (out / "checkpoints").glob("*"))
    saved = lambda: [int(name) for name in names() if name.isdigit()]
    deadline = time.monotonic() + 120
    try:
        while not saved():
            assert time.monotonic() < deadline
            assert group.poll() is None
            time.sleep(0.01)
    finally:
        if whole_group:
            os.killpg(group.pid, signal.SIGKILL)
        else:
            group.kill()
        group.wait()
    assert not (out / "params.npz").exists()
    return max(saved())


@pytest.mark.parametrize(
    "whole_group",
    [True, pytest.param(False, marks=pytest.mark.slow)],
    ids=["all", "launcher"],
)
def test_a_killed_run_goes_on_bit_for_bit(whole, tmp_path, whole_group):
    """Killed with all its processes, or the launcher alone: the others then leave."""
    out = tmp_path / "killed"
    step = kill_after_a_checkpoint(out, 2, whole_group)
    assert step in range(2, 12, 2)
    if not whole_group:
        time.sleep(1)
    assert not still_running(out)
    step = max(int(path.name) for path in (out / "checkpoints").glob("[0-9]*"))
    assert main(command(out, 2)) == 0
    for i in (0, 1):
        assert f"from outer step {step}" in (out / f"process-{i}.log").read_text()
    wanted = params(whole)
    for name, found in params(out).items():
        np.testing.assert_array_equal(found, wanted[name])


def still_running(out):
    """Return the processes whose command line names the folder."""
    found = subprocess.run(
        ["pgrep", "-f", f"worker {out}"], capture_output=True, text=True, check=False
    )
    return found.stdout.split()


def rows_read(out, process):
    """Return how many images a process read, and the sum of their numbers."""
    said = (out / f"process-{process}.log").read_text().rsplit("read ", 1)[1]
    return int(said.split()[0]), int(said.rsplit("sum ", 1)[1])


def test_each_process_reads_its_share_and_all_agree_with_one(whole, tmp_path):
    """One process gives the params of two, to rounding; each of two read its half."""
    out = tmp_path / "one"
    assert main(command(out, 1)) == 0
    (first, first_sum), (second, second_sum) = (rows_read(whole, i) for i in (0, 1))
    alone, alone_sum = rows_read(out, 0)
    assert first == second == alone / 2
    # Positions 0 .. 7 of each 16 images are replica 0's, the others replica 1's.
    assert second_sum - first_sum == 8 * first
    assert first_sum + second_sum == alone_sum
    wanted = params(whole)
    for name, found in params(out).items():
        np.testing.assert_allclose(found, wanted[name], rtol=1e-4, atol=1e-6)
    record = json.loads((out / "result.json").read_text())
    assert record["gradients"] == 2 * 12 * 4
    assert 0 <= record["test_error"] <= 100


def errors_by_hand(params, dataset, batch_size):
    """Error and loss of mnistfc_bn on test images, with statistics at the params."""
    batches = dataset.train.images.reshape(len(dataset.train.labels), -1)
    batches = batches[: len(batches) // batch_size * batch_size]
    batches = batches.reshape(-1, batch_size, batches.shape[-1])
    x = dataset.test.images.reshape(len(dataset.test.labels), -1)
    for i in (0, 1):
        layer, norm = params[f"Dense_{i}"], params[f"BatchNorm_{i}"]
        relu = lambda h, layer=layer: np.maximum(h @ layer["kernel"] + layer["bias"], 0)
        hidden, x = relu(batches), relu(x)
        means, variances = hidden.mean(axis=1), hidden.var(axis=1)
        own = hidden - means[:, None]
        scaled = lambda h, v, norm=norm: h / np.sqrt(v + 1e-5) * norm["scale"]
        batches = scaled(own, variances[:, None]) + norm["bias"]
        x = scaled(x - means.mean(axis=0), variances.mean(axis=0)) + norm["bias"]
    logits = x @ params["Dense_2"]["kernel"] + params["Dense_2"]["bias"]
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(
        logits, dataset.test.labels
    )
    wrong = logits.argmax(axis=1) != dataset.test.labels
    return 100 * wrong.mean(), float(losses.mean())


def test_batch_statistics_are_reestimated_at_the_centre(data_folder):
    chosen = {"model": "mnistfc_bn", "num_gradients": 12}
    found, center = ends(**chosen)
    task: Any = make_task(from_dict(settings.Settings, NUMBERS | chosen))
    error, loss = errors_by_hand(jax.tree.map(np.asarray, center), task.dataset, 8)
    assert found.test_last is not None
    assert found.test_last.error == pytest.approx(error)
    assert found.test_last.loss == pytest.approx(loss, rel=1e-3)


def test_several_processes_reestimate_batch_statistics(tiny_data, tmp_path):
    flags = ("--model=mnistfc_bn", "--num-outer=1", "--save-every=1")
    out = tmp_path / "bn"
    assert main(command(out, 1, *flags)) == 0
    chosen = from_dict(settings.Settings, NUMBERS | {"model": "mnistfc_bn"})
    task = make_task(chosen)
    like, _ = task.init(jax.random.key(0))
    replicas = distributed.load_params(out / "params.npz", like)
    center = jax.tree.map(lambda leaf: leaf.mean(axis=0), replicas)
    error, _ = errors_by_hand(center, data.load("tiny"), TINY.batch_size)
    record = json.loads((out / "result.json").read_text())
    assert record["test_error"] == pytest.approx(error)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(whole, tmp_path):
    """Killed with two processes, ended with four: the batches are divided then."""
    out = tmp_path / "grown"
    kill_after_a_checkpoint(out, 2)
    assert main(command(out, 4)) == 0
    assert "process 3 of 4: from outer step" in (out / "process-3.log").read_text()
    wanted = params(whole)
    for name, found in params(out).items():
        np.testing.assert_allclose(found, wanted[name], rtol=1e-4, atol=1e-6)


def test_what_a_command_says_before_it_starts(whole, capsys):
    assert main(command(whole, 2)) == 0
    assert "Done before" in capsys.readouterr().out
    for flags, message in {
        ("--seed=5",): "was begun with other settings (seed)",
        ("--processes=3",): "3 processes and 2 replicas divide each batch into 3;"
        " --batch-size 8 is no multiple of it",
        ("--processes=0",): "--processes: got 0, wanted 1 or more",
        ("--model=char_lstm",): "--model: got char_lstm, wanted one for images",
        ("--save-every=0",): "--save-every: got 0, wanted 1 or more",
        ("--seed=-1",): "--seed: got -1, wanted 0 or more",
        ("--coupling=-1",): "--coupling: got -1.0, wanted a finite number, 0 or more",
        ("--batch-size=80",): "2 x 80 examples at once, the data has",
    }.items():
        assert main(command(whole, 2, *flags)) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_a_process_that_fails_ends_the_run(tiny_data, tmp_path, capsys, monkeypatch):
    """The other waits for it in vain, and is killed."""
    own = distributed._command
    fails = [sys.executable, "-c", "raise SystemExit('no room')"]
    monkeypatch.setattr(
        distributed, "_command", lambda *args: fails if args[-1] else own(*args)
    )
    assert distributed.launch(TINY, 2, tmp_path / "x", Console()) == 1
    out = capsys.readouterr().out
    assert "no room" in out
    assert "Process 1 failed" in out
    assert not still_running(tmp_path / "x")


def test_two_runs_do_not_share_a_folder(tiny_data, tmp_path, capsys):
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(command(tmp_path, 2)) == 2
    assert "another run writes to" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("changes", "message"),
    [({}, "parle is for images"), ({"optimizer": ("sgd",), "devices": 2}, "text has")],
)
def test_text_has_no_replicas_and_one_device(changes, message):
    chosen = from_dict(settings.Settings, {**NUMBERS, "model": "char_lstm"})
    with pytest.raises(SettingsError, match=message):
        checks.check(dataclasses.replace(chosen, **changes))


def test_one_device_needs_no_mesh():
    chosen = from_dict(settings.Settings, NUMBERS)
    assert meshes.make_mesh(chosen, "parle") is None
    with pytest.raises(SettingsError, match="wanted a multiple of 3"):
        checks.mesh_shape(dataclasses.replace(chosen, devices=3), "parle")
