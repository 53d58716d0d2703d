"""Parle in the runner, on one device and on several; and on several processes."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from rich.console import Console

from entropy_optax.experiments import checks, distributed, meshes, settings, worker
from entropy_optax.experiments.cli import main
from entropy_optax.experiments.distributed import DistributedSettings, Share
from entropy_optax.experiments.runner import Experiment
from entropy_optax.experiments.settings import SettingsError, from_dict
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


@pytest.mark.parametrize(
    ("optimizer", "devices", "replicas", "shape"),
    [
        ("parle", 2, 2, (2, 1)),
        ("parle", 4, 3, (1, 4)),
        ("parle", 8, 2, (2, 4)),
        ("sgd", 4, 1, (1, 4)),
    ],
)
def test_several_devices_give_one_devices_result(
    data_folder, optimizer, devices, replicas, shape
):
    chosen = from_dict(
        settings.Settings, {**NUMBERS, "devices": devices, "replicas": replicas}
    )
    assert checks.mesh_shape(chosen, optimizer) == shape
    many, params = ends(optimizer, devices=devices, replicas=replicas)
    one, wanted = ends(optimizer, replicas=replicas)
    close(params, wanted, rtol=1e-3)
    assert many.gradients == one.gradients


def test_without_coupling_nothing_is_drawn_together(data_folder):
    """Coupling 0 is another program, and other params."""
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
    data="tiny", replicas=2, batch_size=8, num_outer=6, num_steps=4, save_every=2,
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
    with np.load(out / "params.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def kill_after_a_checkpoint(out, processes):
    """Start a run in a process group of its own and kill all of it in the middle."""
    program = [sys.executable, "-m", "entropy_optax.experiments"]
    group = subprocess.Popen(
        [*program, *command(out, processes)],
        start_new_session=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    names = lambda: (path.name for path in (out / "checkpoints").glob("*"))
    saved = lambda: [int(name) for name in names() if name.isdigit()]
    deadline = time.monotonic() + 120
    while not saved():
        assert time.monotonic() < deadline
        assert group.poll() is None
        time.sleep(0.01)
    os.killpg(group.pid, signal.SIGKILL)
    group.wait()
    assert not (out / "params.npz").exists()
    return max(saved())


def test_a_killed_run_goes_on_bit_for_bit(whole, tmp_path):
    out = tmp_path / "killed"
    step = kill_after_a_checkpoint(out, 2)
    assert step in (2, 4)
    assert main(command(out, 2)) == 0
    for i in (0, 1):
        assert f"from outer step {step}" in (out / f"process-{i}.log").read_text()
    wanted = params(whole)
    for name, found in params(out).items():
        np.testing.assert_array_equal(found, wanted[name])


def test_each_process_reads_its_share_and_all_agree_with_one(whole, tmp_path):
    """One process gives the params of two, to rounding; each of two read half."""
    shares = [
        int((whole / f"process-{i}.log").read_text().rsplit("read ", 1)[1].split()[0])
        for i in (0, 1)
    ]
    out = tmp_path / "one"
    assert main(command(out, 1)) == 0
    alone = int((out / "process-0.log").read_text().rsplit("read ", 1)[1].split()[0])
    assert sum(shares) == alone
    assert shares[0] == shares[1]
    wanted = params(whole)
    for name, found in params(out).items():
        np.testing.assert_allclose(found, wanted[name], rtol=1e-4, atol=1e-6)
    record = json.loads((out / "result.json").read_text())
    assert record["gradients"] == 2 * 6 * 4
    assert 0 <= record["test_error"] <= 100


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
        ("--batch-size=80",): "2 x 80 examples at once, the data has",
    }.items():
        assert main(command(whole, 2, *flags)) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_a_process_that_fails_ends_the_run(tiny_data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(distributed, "_prepare", lambda *args: None)
    tmp_path.joinpath("x").mkdir()
    code = distributed.launch(TINY, 1, tmp_path / "x", Console())
    assert code == 1
    out = capsys.readouterr().out
    assert "FileNotFoundError" in out
    assert "Process 0 failed" in out


def test_one_device_needs_no_mesh():
    chosen = from_dict(settings.Settings, NUMBERS)
    assert meshes.make_mesh(chosen, "parle") is None
    with pytest.raises(SettingsError, match="wanted a multiple of 3"):
        checks.mesh_shape(dataclasses.replace(chosen, devices=3), "parle")
