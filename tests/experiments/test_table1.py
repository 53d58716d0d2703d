"""The command `table1`: killed, interrupted, refused, and the same in the end."""

import collections
import json
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import time

import drive_table1
import pytest

from entropy_optax.experiments import checkpoints, runner, table1
from entropy_optax.experiments.cli import main

FLAGS = ["table1", "--row", "mnistfc", "--settings", "short", "--seed", "5"]
RUN = pathlib.Path("mnistfc", "short-24", "entropy_sgd-5")
TIMES = ("seconds", "evaluation_seconds", "compile_seconds")


@pytest.fixture(autouse=True)
def small_row(monkeypatch, data_folder):
    drive_table1.shrink(monkeypatch.setattr)


def result(folder):
    """The result and the metrics, without times."""
    content = json.loads((folder / "result.json").read_text())
    for name in TIMES:
        assert content["run"].pop(name) >= 0
    return content["settings"], content["run"], metrics(folder)


def metrics(folder):
    lines = [json.loads(s) for s in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]
    return lines


_WHOLE = []


@pytest.fixture
def wanted(tmp_path, tmp_path_factory):
    """What a run gives that nothing disturbs; it is done once and copied."""
    if not _WHOLE:
        out = tmp_path_factory.mktemp("whole")
        assert main([*FLAGS, "--out", str(out)]) == 0
        _WHOLE.append(out)
    shutil.copytree(_WHOLE[0], tmp_path / "whole")
    return result(tmp_path / "whole" / RUN)


def start(out, seconds):
    """Starts the command and waits for its first checkpoint."""
    process = subprocess.Popen(
        [sys.executable, drive_table1.__file__, str(seconds), *FLAGS, "--out", out],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = out / RUN / "checkpoints"
    limit = time.monotonic() + 200
    while not any(path.name.isdigit() for path in folder.glob("*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.02)
    return process


def test_a_killed_run_goes_on_bit_for_bit(tmp_path, wanted):
    out = tmp_path / "killed"
    process = start(out, 0.3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (out / RUN / "result.json").exists()
    done = metrics(out / RUN)
    assert 0 < len(done) < 12  # it was on its way
    again = subprocess.run(
        [sys.executable, drive_table1.__file__, "0", *FLAGS, "--out", out],
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert "Going on after" in again.stdout
    assert result(out / RUN) == wanted
    # Nothing is missing, and nothing stands there twice.
    lines = metrics(out / RUN)
    assert [line["gradients"] for line in lines] == list(range(2, 25, 2))
    assert lines[: len(done)] == done
    assert not (out / RUN / "checkpoints").exists()


def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path, wanted, capsys):
    out = tmp_path / "stopped"
    process = start(out, 0.3)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=200)
    assert process.returncode == 130, errors
    assert "Stopped. The same command goes on" in printed
    assert "Traceback" not in errors
    done = len(metrics(out / RUN))
    assert 0 < done < 12
    assert main([*FLAGS, "--out", str(out)]) == 0
    # The newest state was saved: nothing is done twice.
    assert f"Going on after {2 * done} gradients" in capsys.readouterr().out
    assert result(out / RUN) == wanted


def test_a_second_ctrl_c_ends_it_at_once(tmp_path, monkeypatch, wanted, capsys):
    def twice(self, *args):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    out = tmp_path / "stopped"
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "due", twice)
        assert main([*FLAGS, "--out", str(out)]) == 130
    assert "Stopped. The same command goes on" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before
    assert main([*FLAGS, "--out", str(out)]) == 0
    assert result(out / RUN) == wanted


def cut_lines(line):
    """What a kill may leave of a line."""
    assert json.loads(line)["validation"] is not None
    return ["", line[:20], line[: line.index("}") + 1], line]


def test_a_kill_may_leave_parts(tmp_path, monkeypatch, wanted):
    out = tmp_path / "killed"

    class Killed(BaseException):
        pass

    def killed(self, gradients, *args):
        save(self, gradients, *args)
        raise Killed

    save = checkpoints.Checkpoints.save
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "save", killed)
        patch.setattr(checkpoints.Checkpoints, "due", lambda self: True)
        with pytest.raises(Killed):
            main([*FLAGS, "--out", str(out)])
    # Another line, a part of the next, and what else may have been on its way.
    lines = [json.dumps(line | {"seconds": 1.0}) for line in wanted[2]]
    with (out / RUN / "metrics.jsonl").open("a") as file:
        file.write(lines[2] + "\n" + cut_lines(lines[3])[2])
    for name in ("metrics.tmp", "result.tmp", "settings.tmp"):
        (out / RUN / name).write_text("{")
    saved = out / RUN / "checkpoints"
    shutil.copytree(saved / "2", saved / "4.orbax-checkpoint-tmp")
    (saved / "4.orbax-checkpoint-tmp" / "_CHECKPOINT_METADATA").write_text("{")
    assert main([*FLAGS, "--out", str(out)]) == 0
    assert result(out / RUN) == wanted


@pytest.mark.parametrize("part", range(4))
def test_lines_after_the_checkpoint_go(tmp_path, wanted, part):
    lines = [json.dumps(line) + "\n" for line in wanted[2]]
    rest = cut_lines(lines[3][:-1])[part]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(lines[:3]) + rest)
    with table1._metrics(tmp_path, 4, tensorboard=False):
        assert path.read_text() == "".join(lines[:2])


def test_a_finished_run_is_not_run_again(tmp_path, monkeypatch, capsys, wanted):
    def forbidden(*args, **options):
        raise AssertionError

    monkeypatch.setattr(runner.Experiment, "run", forbidden)
    path = tmp_path / "whole" / RUN / "result.json"
    before = path.read_bytes()
    assert main([*FLAGS, "--out", str(tmp_path / "whole")]) == 0
    assert "Done before" in capsys.readouterr().out
    assert path.read_bytes() == before


def refuse(capsys, monkeypatch, arguments, message):
    """One line, exit code 2, and no gradient taken."""

    def forbidden(*args, **options):
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(runner.Experiment, "run_together", forbidden)
        assert main([*FLAGS, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("entropy-optax: error: ")
    assert error.count("\n") == 1
    assert message in error


def test_a_folder_that_cannot_be_written_to(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    out = ["--out", str(tmp_path / "file" / "runs")]
    refuse(capsys, monkeypatch, out, "--out: cannot write to")

    # One that holds a run already, and has become unwritable since.
    def unwritable(self, *args, **options):
        raise PermissionError(13, "Permission denied")

    table1._claim(tmp_path / "runs" / RUN, table1.report.to_json(chosen()))
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "write_text", unwritable)
        out = ["--out", str(tmp_path / "runs")]
        refuse(capsys, monkeypatch, out, "(Permission denied)")


def chosen():
    return table1.settings_of("mnistfc", "short", "entropy_sgd", 5, None)


def test_a_folder_of_other_settings(tmp_path, capsys, monkeypatch, wanted):
    path = tmp_path / "runs" / RUN / "settings.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(table1.report.to_json(chosen()) | {"batch_size": 4}))
    out = ["--out", str(tmp_path / "runs")]
    refuse(capsys, monkeypatch, out, "made with other settings (batch_size)")
    # Likewise where that run has ended.
    path = tmp_path / "whole" / RUN / "result.json"
    content = json.loads(path.read_text())
    content["settings"]["seeds"] = [6]
    path.write_text(json.dumps(content))
    out = ["--out", str(tmp_path / "whole")]
    refuse(capsys, monkeypatch, out, "made with other settings (seeds)")


def test_a_full_disk(tmp_path, capsys, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**30, 2**30, 2**20))
    out = ["--out", str(tmp_path / "runs")]
    refuse(capsys, monkeypatch, out, "1 MiB free, the checkpoints need 16 MiB")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "5"], "--budget: got 5, for mnistfc wanted a multiple of 2"),
        (["--budget", "0"], "--budget: got 0"),
        (["--settings", "tuned"], "for mnistfc wanted one of short"),
        (["--seed", "-1"], "--seeds: got -1"),
        (["--optimizer", "lookahead"], "the 5 gradients of an update of lookahead"),
    ],
)
def test_wrong_flags(tmp_path, capsys, monkeypatch, arguments, message):
    arguments = [*arguments, "--out", str(tmp_path / "runs")]
    refuse(capsys, monkeypatch, arguments, message)
    assert not (tmp_path / "runs").exists()


def test_a_budget_has_a_folder_of_its_own(tmp_path):
    arguments = [*FLAGS, "--budget", "6", "--optimizer", "sgd"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    folder = tmp_path / "mnistfc" / "short-6" / "sgd-5"
    content = json.loads((folder / "result.json").read_text())
    assert content["run"]["gradients"] == 6
    assert content["epochs"] == 1.0  # 48 images, batches of 8
    assert [line["gradients"] for line in metrics(folder)] == [2, 4, 6]


def scalars(folder):
    """Reads event files: a length, its checksum, an event, its checksum."""
    from tensorboardX.proto import event_pb2

    found = {}
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = vars(event_pb2)["Event"].FromString(data[at + 12 : at + 12 + size])
            at += size + 16
            for value in event.summary.value:
                points = found.setdefault(value.tag, [])
                points.append((event.step, value.simple_value))
    return found


def test_tensorboard(tmp_path, monkeypatch, wanted):
    """A run that was stopped and went on has each point once."""
    pytest.importorskip("tensorboardX")
    arguments = [*FLAGS, "--tensorboard", "--out", str(tmp_path / "runs")]
    due = checkpoints.Checkpoints.due

    def stopping(self):
        self.stop = True
        return due(self)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "due", stopping)
        for _ in range(3):
            assert main(arguments) == 130
    folder = tmp_path / "runs" / RUN
    found = scalars(folder / "tensorboard")
    assert [step for step, _ in found["loss/training"]] == [2, 4, 6]
    assert main(arguments) == 0
    assert result(folder) == wanted
    found = scalars(folder / "tensorboard")
    lines = wanted[2]
    for tag, values in {
        "loss/training": [(x["gradients"], x["loss"]) for x in lines],
        "rate": [(x["gradients"], x["rate"]) for x in lines],
        "loss/validation": [
            (x["gradients"], x["validation"]["loss"]) for x in lines if x["validation"]
        ],
        "error/validation": [
            (x["gradients"], x["validation"]["error"]) for x in lines if x["validation"]
        ],
    }.items():
        assert [step for step, _ in found.pop(tag)] == [step for step, _ in values]
    assert not found


def test_tensorboard_is_an_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    arguments = ["--tensorboard", "--out", str(tmp_path)]
    refuse(capsys, monkeypatch, arguments, "pip install 'entropy-optax[tensorboard]'")
