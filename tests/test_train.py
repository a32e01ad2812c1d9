"""Training: it learns, and a run that was interrupted ends bit for bit like one that was not."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from deeplabv3plus.checkpoint import Checkpoint
from deeplabv3plus.data import VOCSegmentation
from deeplabv3plus.metrics import ConfusionMatrix
from deeplabv3plus.training.config import SAMPLE, TrainConfig
from deeplabv3plus.training.interrupt import Interrupt
from deeplabv3plus.training.log import RunLog, read_log
from deeplabv3plus.training.objective import Objective
from deeplabv3plus.training.precision import pick_device, use_bfloat16
from deeplabv3plus.training.setup import build_model, class_pixels
from deeplabv3plus.training.timer import SaveTimer
from deeplabv3plus.training.trainer import Trainer, resumed_config
from voc_folder import TINY, make_folder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("voc"))


@pytest.fixture(autouse=True)
def _threads(one_thread: None) -> None:
    """One thread, as in `TINY`, and the earlier number back afterwards."""


def _trainer(folder: Path, output: Path, config: TrainConfig = TINY) -> Trainer:
    pairs = (VOCSegmentation(folder, split) for split in ("train", "val"))
    return Trainer(config, *pairs, output, show_progress=False)


def _resume(folder: Path, output: Path) -> Trainer:
    state = Checkpoint.load(output / "checkpoint.pt")
    trainer = _trainer(folder, output, resumed_config(state, {}, "checkpoint.pt"))
    trainer.resume(state, "checkpoint.pt")
    return trainer


def _same(one: object, other: object) -> bool:
    """Equality down to the last bit of every tensor in nested dictionaries and lists."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)  # type: ignore[arg-type]
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)  # type: ignore
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))  # type: ignore
    return one == other


def _assert_same_run(one: Path, other: Path) -> None:
    states = [vars(Checkpoint.load(path / "checkpoint.pt")) for path in (one, other)]
    for name in states[0]:
        assert _same(states[0][name], states[1][name]), name
    best = [vars(Checkpoint.load(path / "best.pt")) for path in (one, other)]
    assert _same(*best)
    logs = [read_log(path / "log.csv") for path in (one, other)]
    for row in [*logs[0], *logs[1]]:
        del row["seconds"]
    assert logs[0] == logs[1]


VARIANTS = {
    "sgd": TINY,
    "bfloat16": replace(TINY, amp="bf16"),
    "adamw": replace(TINY, optimizer="adamw", lr=1e-3, ema=0.0, class_weights="balanced"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_run_is_bit_for_bit_the_whole_run(
    variant: str, folder: Path, tmp_path: Path
) -> None:
    config = VARIANTS[variant]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _trainer(folder, whole, config).fit()
    _trainer(folder, parts, config).fit(until=3)
    torch.rand(17)  # what happens in between must not matter
    resumed = _resume(folder, parts)
    assert resumed.step == 3
    resumed.fit()
    _assert_same_run(whole, parts)


def _command(folder: Path, output: Path) -> list[str]:
    options = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in asdict(TINY).items()
        if not isinstance(value, bool) and value != ""
    ]
    program = [sys.executable, "-m", "deeplabv3plus.cli", "train"]
    return [*program, "--data", str(folder), "--output", str(output), *options]


@pytest.fixture(scope="module")
def whole_run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    _trainer(folder, output, replace(TINY, steps=16, eval_every=8)).fit()
    torch.set_num_threads(threads)
    return output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_run_continues_exactly(
    number: signal.Signals, folder: Path, whole_run: Path, tmp_path: Path
) -> None:
    command = [*_command(folder, tmp_path), "--steps=16", "--eval-every=8"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        deadline = time.monotonic() + 60
        while len(read_log(tmp_path / "log.csv")) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        run.send_signal(number)
        output, errors = run.communicate(timeout=60)
    state = Checkpoint.load(tmp_path / "checkpoint.pt")
    assert 2 <= state.step < 16, errors
    assert len(read_log(tmp_path / "log.csv")) - state.step in (0, 1)
    if number == signal.SIGTERM:
        assert run.returncode == 128 + signal.SIGTERM
        assert f"stopped after step {state.step} of 16" in output
        assert "dlv3p train --resume" in output
        assert len(read_log(tmp_path / "log.csv")) == state.step
    _resume(folder, tmp_path).fit()
    _assert_same_run(whole_run, tmp_path)


def confusion_of_background(trainer: Trainer) -> ConfusionMatrix:
    confusion = ConfusionMatrix(len(trainer.classes))
    for index in range(len(trainer.val_pairs)):
        mask = torch.from_numpy(trainer.val_pairs[index][1])
        confusion.update(mask, torch.zeros_like(mask))
    return confusion


def test_ctrl_c_in_a_terminal_finishes_the_step_with_workers(folder: Path, tmp_path: Path) -> None:
    command = [*_command(folder, tmp_path), "--steps=400", "--eval-every=0", "--workers=1"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        deadline = time.monotonic() + 60
        while len(read_log(tmp_path / "log.csv")) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(run.pid, signal.SIGINT)
        output, errors = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGINT, errors
    step = Checkpoint.load(tmp_path / "checkpoint.pt").step
    assert f"SIGINT: stopped after step {step} of 400" in output
    assert "Traceback" not in errors


def test_training_learns(folder: Path, tmp_path: Path) -> None:
    config = replace(TINY, steps=80, batch_size=4, optimizer="adamw", lr=2e-2, eval_every=0)
    config = replace(config, aspp_channels=32, decoder_channels=32, checkpoint_every=80)
    trainer = _trainer(folder, tmp_path, config)
    trainer.fit()
    losses = [row["loss"] for row in read_log(tmp_path / "log.csv")]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    background_everywhere = confusion_of_background(trainer).mean_iou()
    assert trainer.scores["miou"] > 1.5 * background_everywhere


def test_loss_that_is_not_finite_stops_the_run(folder: Path, tmp_path: Path) -> None:
    trainer = _trainer(folder, tmp_path)
    trainer.fit(until=1)
    with torch.no_grad():
        trainer.model.decoder.classifier.bias.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 2"):
        trainer.fit()
    assert Checkpoint.load(tmp_path / "checkpoint.pt").step == 1


def test_resuming_refuses_what_does_not_fit(folder: Path, tmp_path: Path) -> None:
    _trainer(folder, tmp_path).fit(until=1)
    state = Checkpoint.load(tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"x.pt: .*these differ: lr 0.05 \(asked: 1.0\)"):
        resumed_config(state, {"lr": 1.0, "workers": 1}, "x.pt")
    assert resumed_config(state, {"lr": 0.05, "workers": 1}, "x.pt").workers == 1
    with pytest.raises(
        ValueError, match=r"x.pt: weights of another model; keys .* of another shape"
    ):
        _trainer(folder, tmp_path, replace(TINY, aspp_channels=4)).resume(state, "x.pt")
    other = make_folder(tmp_path / "other")
    (other / "classes.txt").write_text("sky\nsea\nland")
    with pytest.raises(ValueError, match=r"trained for the classes background.*data has sky"):
        _trainer(other, tmp_path).resume(state, "x.pt")
    state.training = {}
    with pytest.raises(ValueError, match=r"x.pt: weights for prediction only"):
        resumed_config(state, {}, "x.pt")


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("steps", 0, ValueError),
        ("steps", 2.5, TypeError),
        ("flips", "up", ValueError),
        ("channels_last", 1, TypeError),
        ("lr", -1.0, ValueError),
        ("lr", math.nan, ValueError),
        ("scale_max", 0.1, ValueError),
        ("output_stride", 12, ValueError),
    ],
)
def test_settings_are_checked(name: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"^{name}: expected"):
        replace(SAMPLE, **{name: value})


def test_class_weights(folder: Path) -> None:
    pairs = VOCSegmentation(folder, "train")
    counts = class_pixels(pairs)
    assert counts.sum() == 4 * 39 * 48  # the first row is ignored
    objective = Objective(counts, CPU)
    assert objective.weights is not None
    share = counts / counts.sum()
    assert float((objective.weights * share).sum()) == pytest.approx(1)
    ratio = objective.weights[1] / objective.weights[0]
    assert float(ratio) == pytest.approx(float((share[0] / share[1]).sqrt()))
    model = build_model(TINY, 3, CPU).eval()
    images = torch.rand(2, 3, 33, 33).contiguous(memory_format=torch.channels_last)
    target = torch.randint(0, 3, (2, 33, 33))
    target[:, :9] = 255
    expected = torch.nn.functional.cross_entropy(
        model(images), target, objective.weights, ignore_index=255
    )
    torch.testing.assert_close(objective(model, images, target), expected)
    assert objective(model, images, torch.full_like(target, 255)).item() == 0


def test_encoder_weights(tmp_path: Path) -> None:
    donor = build_model(TINY, 3, CPU).encoder
    path = tmp_path / "encoder.pth"
    torch.save(donor.state_dict(), path)
    encoder = build_model(replace(TINY, encoder_weights=str(path)), 2, CPU).encoder
    assert _same(dict(encoder.state_dict()), dict(donor.state_dict()))
    torch.save({"other": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"^encoder_weights: .*encoder.pth"):
        build_model(replace(TINY, encoder_weights=str(path)), 2, CPU)
    with pytest.raises(FileNotFoundError, match=r"none.pth: no such file of encoder weights"):
        build_model(replace(TINY, encoder_weights="none.pth"), 2, CPU)


def test_save_timer() -> None:
    now = 100.0
    timer = SaveTimer(0, lambda: now)

    def save() -> None:
        nonlocal now
        now += 1

    assert timer.due(1)
    timer.time(save)
    now += 18
    assert not timer.due(2)
    now += 1
    assert timer.due(3)
    assert [SaveTimer(3).due(step) for step in range(1, 7)] == [False, False, True] * 2


def test_log_drops_what_the_killed_run_lost(tmp_path: Path) -> None:
    log = RunLog(tmp_path, ["loss", "miou"], 0)
    for step in range(1, 6):
        log.add({"step": step, "loss": 1 / step})
    path = tmp_path / "log.csv"
    path.write_text(path.read_text() + "6,0.1")  # cut off by a crash
    RunLog(tmp_path, ["loss", "miou"], 3).add({"step": 4, "loss": 9, "miou": 0.5})
    rows = read_log(path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[3] == {"step": 4, "loss": 9, "miou": 0.5} and rows[1] == {"step": 2, "loss": 0.5}
    path.write_text("step,loss\n1,much\n")
    with pytest.raises(ValueError, match=r"log.csv: not a training log"):
        read_log(path)


def test_interrupt_notes_the_signal_and_gives_it_back() -> None:
    def handlers() -> list[object]:
        return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    before = handlers()
    with Interrupt() as interrupt:
        assert interrupt.signal is None
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert handlers() == before


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cpu:x"])
def test_device_names_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=r"^device: "):
        pick_device(name)


def test_precision_is_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert use_bfloat16("bf16", CPU) and not use_bfloat16("off", CPU)
    answers: list[Callable[[], dict]] = [lambda: {"avx512_bf16": True}, dict]
    seen = []
    for answer in answers:
        monkeypatch.setattr(torch.cpu, "get_capabilities", answer, raising=False)
        seen.append(use_bfloat16("auto", CPU))
    assert seen == [True, False]
