"""The command line: from a folder to masks, one-line errors, the core without extras."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from deeplabv3plus import cli, demo, doctor
from deeplabv3plus.checkpoint import Checkpoint
from deeplabv3plus.data.voc import read_mask
from deeplabv3plus.training.log import read_log
from PIL import Image
from voc_folder import NAMES, TINY, make_folder

TINY_OPTIONS = [
    "--encoder=mobilenet_v2",
    "--aspp-channels=8",
    "--decoder-channels=8",
    "--low-level-channels=4",
    "--batch-size=2",
    "--crop=33",
    "--threads=1",
    "--device=cpu",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("voc"))


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished run."""
    output = tmp_path_factory.mktemp("run")
    options = ["--data", str(folder), "--output", str(output), "--epochs=1.5"]
    threads = torch.get_num_threads()
    assert cli.main(["train", *options, *TINY_OPTIONS]) == 0
    torch.set_num_threads(threads)
    return output


@pytest.fixture(autouse=True)
def _threads(one_thread: None) -> None:
    """Commands set the number of threads; give the earlier one back."""


def _fails(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the only line on stderr of a command that must end with status 2."""
    capsys.readouterr()
    assert cli.main(arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("dlv3p: error: ") and errors.count("\n") == 1
    return errors


def test_train_writes_its_files(run: Path) -> None:
    assert {path.name for path in run.iterdir()} == {
        "best.pt",
        "checkpoint.pt",
        "curves.png",
        "log.csv",
    }
    assert Checkpoint.load(run / "checkpoint.pt").step == 3  # 1.5 times 4 pictures, 2 a step
    assert [row["step"] for row in read_log(run / "log.csv")] == [1, 2, 3]


def test_evaluate_prints_every_class(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = str(run / "best.pt")
    assert cli.main(["evaluate", "--data", str(folder), "--weights", weights]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == list(NAMES)
    assert any(line.startswith("mean IoU") for line in lines)


def test_segment_writes_mask_and_overlay(run: Path, folder: Path, tmp_path: Path) -> None:
    pictures, weights = str(folder / "JPEGImages"), str(run / "best.pt")
    assert cli.main(["segment", pictures, "-o", str(tmp_path), "--weights", weights]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        name for stem in "abcdef" for name in (f"{stem}.png", f"{stem}_overlay.png")
    }
    assert read_mask(tmp_path / "a.png", NAMES).shape == (40, 48)
    with Image.open(tmp_path / "a_overlay.png") as image:
        assert np.asarray(image).ndim == 3


def test_resume_and_overwrite(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output", str(run)]
    assert "exists: --resume continues it" in _fails(["train", *output], capsys)
    assert "these differ: lr" in _fails(["train", *output, "--resume", "--lr=1"], capsys)
    assert "--epochs" in _fails(["train", *output, "--resume", "--epochs=2"], capsys)
    assert "these differ: steps" in _fails(["train", *output, "--resume", "--steps=9"], capsys)
    best = str(run / "best.pt")
    assert "for prediction only" in _fails(["train", "--resume", best], capsys)
    nowhere = ["--output", str(tmp_path / "none"), "--resume"]
    assert "checkpoint.pt: no such checkpoint" in _fails(["train", *nowhere], capsys)
    # Finished: there is nothing to do, and it says how good it was.
    assert cli.main(["train", "--resume", str(run / "checkpoint.pt")]) == 0
    assert "after 3 steps: mean IoU" in capsys.readouterr().out


def test_bad_input_is_one_line(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    untrained = ["segment", str(folder / "JPEGImages"), "-o=x"]
    assert "train a model first (dlv3p train)" in _fails(untrained, capsys)
    weights = ["--weights", str(run / "best.pt")]
    assert "none: no such picture" in _fails(["segment", "none", "-o", "x", *weights], capsys)
    assert "dlv3p train" in _fails(["evaluate"], capsys)
    assert "trained for the classes background" in _fails(["evaluate", *weights], capsys)
    assert "train.txt: no such list" in _fails(["train", "--data", str(tmp_path)], capsys)
    assert "device: " in _fails(["evaluate", *weights, "--device", "gpu"], capsys)
    assert "lr: expected at least 0" in _fails(["train", "--lr=-1"], capsys)
    assert "encoder must be one of" in _fails(["train", "--encoder=vgg"], capsys)
    (tmp_path / "text.pt").write_text("text")
    broken = ["evaluate", "--weights", "text.pt"]
    assert "text.pt: not a readable checkpoint" in _fails(broken, capsys)
    with pytest.raises(ValueError, match=r"text.pt: not a readable checkpoint"):
        cli.main([*broken, "--debug"])


def test_broken_mask_is_named_also_from_a_worker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(tmp_path / "voc")
    for name in "abcd":
        Image.new("L", (48, 40), 9).save(folder / "SegmentationClass" / f"{name}.png")
    options = ["--data", str(folder), "--output", str(tmp_path / "out"), "--workers=1", "--steps=2"]
    message = _fails(["train", *options, *TINY_OPTIONS], capsys)
    assert "SegmentationClass/" in message and "values 9 are outside the 3 classes" in message


def test_wrong_options_end_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["fly"], ["train", "--flips=up"], ["evaluate", "--window=-1"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 2


def test_help_shows_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "--output-stride" in text and "--resume" in text and "default: 0.007" in text


def test_bench_passes_its_arguments_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    bench = types.ModuleType("dlv3p_kernels.bench")
    bench.main = lambda arguments: seen.append(arguments) or 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dlv3p_kernels.bench", bench)
    assert cli.main(["bench", "--op", "depthwise", "--help"]) == 7
    assert seen == [["--op", "depthwise", "--help"]]


def test_doctor_needs_no_extra_library() -> None:
    program = (
        "import sys; sys.modules.update(dict.fromkeys(('PIL', 'tqdm', 'matplotlib')));"
        "from deeplabv3plus import cli;"
        "status = cli.main(['doctor']); sys.stdout.flush();"
        "sys.exit(status or cli.main(['train']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "self-check: depthwise convolution and its gradients agree" in done.stdout
    assert done.returncode == 2
    assert 'pip install "dlv3p_kernels[train]"' in done.stderr
    assert done.stderr.count("\n") == 1


def test_doctor_fails_where_results_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.self_check() == ""
    stock = doctor._stock
    monkeypatch.setattr(doctor, "_stock", lambda *given, **named: 2 * stock(*given, **named))
    assert "FAILED on cpu" in doctor.self_check()


def test_demo_says_when_it_falls_short(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(demo, "SAMPLE", TINY)
    monkeypatch.setattr(demo, "sample_path", lambda: folder)
    monkeypatch.setattr(demo, "REPEATS", 1)
    assert demo.main(["--output", str(tmp_path), "--steps=1"]) == 1
    output = capsys.readouterr().out
    assert "times as fast" in output and "wanted: at least 0.45" in output
    assert {"predictions.png", "curves.png"} <= {path.name for path in tmp_path.iterdir()}


def test_demo_succeeds_with_the_wanted_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = demo.StepComparison(demo.StepCost(2.0, 30), demo.StepCost(1.0, 10), 0.0, 0.0)
    steps = []
    monkeypatch.setattr(demo, "compare_step", lambda config, repeats: comparison)
    monkeypatch.setattr(demo, "train", lambda config, output: steps.append(config.steps))
    monkeypatch.setattr(demo, "show_predictions", lambda trainer: 0.45)
    assert demo.main(["--output", str(tmp_path)]) == 0
    assert steps == [150]  # a step of one second: as many as fit, but not fewer than 150


def test_demo_compares_both_back_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = {"reference": [2.0, -4.0], "auto": [2.0, -3.0]}
    monkeypatch.setattr(
        demo, "_outcome", lambda *given: [torch.tensor(outcomes[given[-1]]), torch.ones(1)]
    )
    comparison = demo.compare_step(replace(TINY, crop=64), repeats=1)
    assert comparison.stock.seconds > 0 and comparison.ours.seconds > 0
    assert comparison.stock.peak > comparison.ours.peak > 0
    assert (comparison.logits, comparison.gradients) == (0.25, 0.0)


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = f"set -o pipefail; {sys.executable} -u -m deeplabv3plus doctor | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("dlv3p_kernels ")
    assert (done.returncode, done.stderr) == (0, "")
