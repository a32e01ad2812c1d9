"""`make gpu-check` up to its first GPU call: the command, its processes, the libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_check import (
    __main__,
    build,
    cases,
    parity,
    parts,
    sanitize,
    summary,
)
from gpu_check.contenders import COPY, Setting
from gpu_check.record import Record, mark_stopped
from gpu_check.subjects import SUBJECTS

from dlv3p_kernels.bench import machine

ROOT = Path(__file__).resolve().parent.parent
CPU = Setting("cpu", ("cpu",), 0, ())
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture(autouse=True)
def findable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes find the check and the package of this checkout."""
    paths = [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


def executable(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@no_gpu
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gpu_check", "--build", "never", "--output", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    built = f"with CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    message = f"gpu-check: no CUDA GPU was found (torch {torch.__version__}, built {built}"
    assert result.stderr.startswith(message)
    assert "tests/test_depthwise_parity.py" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_make_target_runs_the_named_interpreter_and_nothing_else() -> None:
    command = ["make", "--no-print-directory", "-n", "gpu-check", "PYTHON=/opt/gpu/python"]
    command.append("PARTS=parity bench")
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    result = subprocess.run(
        command, cwd=ROOT, env=alone, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == ["/opt/gpu/python -m gpu_check parity bench"]


def test_unknown_parts_are_refused() -> None:
    with pytest.raises(SystemExit, match="no part speed; there are parity, sanitize"):
        __main__.main(["speed"])


def test_every_part_is_known_everywhere() -> None:
    assert tuple(__main__.WEIGHTS) == tuple(parts._RUN) == summary.PARTS == tuple(summary._TABLES)


def test_all_parity_files_exist() -> None:
    files = parity.test_files()
    assert len(files) > 2
    assert all((ROOT / name).is_file() for name in files)


@pytest.mark.usefixtures("one_thread")
def test_dry_run_end_to_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--dry-run", "--backends", "cpu", "--output", str(tmp_path), "--seconds", "100"]
    assert __main__.main(["bench", *arguments]) == 0
    assert "bench: complete, 0 problems" in capfd.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["dry-run"]
    record = json.loads((tmp_path / "dry-run" / "bench.json").read_text())
    assert record["machine"]["dry_run"] is True
    assert "gpu" not in record["machine"]
    expected = sum(len(cases.DRY_FAMILIES[subject.family]) for subject in SUBJECTS)
    assert len(record["rows"]) == 3 * expected
    for row in record["rows"]:
        assert {"stock contiguous", "cpu channels_last", COPY} <= set(row["ms"])
        median = row["ms"]["cpu contiguous"]["median"]
        assert row["gbps"]["cpu contiguous"] == pytest.approx(row["bytes"] / median / 1e6)
    text = (tmp_path / "dry-run" / "README.md").read_text()
    assert summary.DRY in text
    for name in [subject.name for subject in SUBJECTS]:
        assert text.count(f"### {name}\n") == 1


@pytest.mark.usefixtures("one_thread")
def test_dry_run_of_whole_layers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--dry-run", "--backends", "cpu", "--output", str(tmp_path), "--seconds", "100"]
    assert __main__.main(["layers", *arguments]) == 0
    assert "layers: complete, 0 problems" in capfd.readouterr().out
    record = json.loads((tmp_path / "dry-run" / "layers.json").read_text())
    assert len(record["rows"]) == 2 * len(cases.DRY_LAYERS)
    for row in record["rows"]:
        assert set(row["ms"]) == {"stock channels_last", "cpu channels_last"}
        assert row["of_floor"]["cpu channels_last"] == pytest.approx(
            row["floor_ms"] / row["ms"]["cpu channels_last"]["median"]
        )
        measured = set(row["memory"])
        assert measured == (set(row["ms"]) if "training" in row["subject"] else set())
    text = (tmp_path / "dry-run" / "README.md").read_text()
    for layer in cases.DRY_LAYERS:
        for direction in ("inference", "training"):
            assert f"* {layer.name}, {direction}, {layer.case}: cpu channels_last " in text


def test_part_that_crashes_is_reported_and_keeps_no_old_results(tmp_path: Path) -> None:
    stale = tmp_path / "dry-run" / "bench.json"
    stale.parent.mkdir()
    stale.write_text("{}")
    arguments = ["--dry-run", "--backends", "no-such", "--output", str(tmp_path)]
    assert __main__.main(["bench", *arguments]) == 1
    data = json.loads(stale.read_text())
    assert data["status"] == "ended with status 1"
    assert data["problems"] == ["ended with status 1"]


def test_record_is_on_disk_after_every_row(tmp_path: Path) -> None:
    record = Record(tmp_path, "bench", {})
    record.add({"case": 1})
    assert json.loads(record.path.read_text())["rows"] == [{"case": 1}]
    assert mark_stopped(record.path, "killed")["problems"] == ["killed"]
    record.leave_out("row 2")
    record.finish()
    assert mark_stopped(record.path, "killed")["status"] == "cut short"


TESTS = """
import os, pytest
def test_right(): pass
def test_wrong(): assert 1 == 2
@pytest.mark.skip(reason="no such device")
def test_skipped(): pass
def test_crash():
    if os.environ.get("CRASH"): os._exit(9)
@pytest.fixture
def broken(): raise ValueError("set-up")
def test_broken(broken): pass
"""


def pytest_outcome(folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    (folder / "test_planted.py").write_text(TESTS)
    log = folder / "log.jsonl"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "gpu_check.pytest_record"]
    command += ["--record", str(log), *(options or ("--seconds", "60")), "test_planted.py"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return result.returncode, parity.summary(parity._entries(log))


def test_outcomes_are_recorded(tmp_path: Path) -> None:
    status, found = pytest_outcome(tmp_path)
    assert status == 1
    assert found["counts"] == {"passed": 2, "failed": 2, "skipped": 1}
    assert (found["selected"], found["not_run"], found["unfinished"]) == (5, 0, None)
    assert [f["test"].split("::")[1] for f in found["failures"]] == ["test_wrong", "test_broken"]
    assert "assert 1 == 2" in found["failures"][0]["why"]
    assert "no such device" in next(iter(found["skips"]))


def test_outcomes_before_a_crash_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRASH", "1")
    status, found = pytest_outcome(tmp_path)
    assert status == 9
    assert found["counts"] == {"passed": 1, "failed": 1, "skipped": 1}
    assert found["unfinished"] == "test_planted.py::test_crash"
    assert found["not_run"] == 2


def test_shares_make_up_the_whole_and_end_in_time(tmp_path: Path) -> None:
    found = [pytest_outcome(tmp_path, "--seconds", "60", "--share", f"{i}/2")[1] for i in range(2)]
    assert [f["selected"] for f in found] == [3, 2]
    status, late = pytest_outcome(tmp_path, "--seconds", "0")
    assert (status, late["counts"], late["not_run"]) == (0, {}, 5)


def test_parity_runs_every_share(tmp_path: Path) -> None:
    record = Record(tmp_path, "parity", {})
    shares = [parity.Share("cpu", ("tests/test_gpu.py",), i, 2) for i in range(2)]
    parity.run(record, "cpu", shares, time.monotonic() + 200)
    assert record.data["problems"] == []
    assert [row["share"] for row in record.data["rows"]] == ["1/2", "2/2"]
    assert all(set(row["counts"]) == {"skipped"} for row in record.data["rows"])
    reasons = [reason for row in record.data["rows"] for reason in row["skips"]]
    assert all("no CUDA GPU" in r or "--device cuda" in r for r in reasons), reasons


def test_parity_splits_by_cores() -> None:
    assert len(parity.shares(("cuda", "triton"), (), 16)) == 8
    assert len(parity.shares(("cuda", "triton"), (), 2)) == 2


CLEAN = "12 calls done\n========= ERROR SUMMARY: 0 errors"


@pytest.mark.parametrize(
    ("status", "output", "verdict"),
    [
        (0, CLEAN, "clean"),
        (86, "========= ERROR SUMMARY: 3 errors", "errors"),
        (0, "========= ERROR SUMMARY: 0 errors", "did not run"),
        (0, "12 calls done", "did not run"),
        (1, "========= Error: Device not supported", "did not run"),
    ],
)
def test_verdict_of_the_sanitizer(status: int, output: str, verdict: str) -> None:
    assert sanitize.judged(status, output)["verdict"] == verdict


def test_sanitize_runs_every_operator(tmp_path: Path) -> None:
    script = 'while [ "$1" != "-m" ]; do python=$1; shift; done; "$python" "$@" || exit 1\n'
    tool = executable(tmp_path / "sanitizer", script + 'echo "========= ERROR SUMMARY: 0 errors"')
    record = Record(tmp_path, "sanitize", {})
    sanitize.run(record, str(tool), "cpu", ["cpu"], time.monotonic() + 200)
    assert [(row["tool"], row["verdict"]) for row in record.data["rows"]] == [
        ("memcheck", "clean"),
        ("racecheck", "clean"),
    ], record.data["rows"]
    assert record.data["rows"][0]["calls"] > 400
    assert record.data["status"] == "complete"


def test_sanitize_reports_errors_and_what_it_lacks(tmp_path: Path) -> None:
    tool = executable(tmp_path / "sanitizer", 'echo "ERROR SUMMARY: 2 errors"; exit 86')
    record = Record(tmp_path, "sanitize", {})
    sanitize.run(record, str(tool), "cpu", ["cpu"], time.monotonic() + 60)
    assert record.data["problems"][0] == "memcheck of cpu: 2 errors"
    record = Record(tmp_path, "sanitize", {})
    sanitize.run(record, None, "cpu", ["cpu"], time.monotonic() + 60)
    assert record.data["left_out"][0] == "memcheck of cpu (compute-sanitizer was not found)"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Sources, and libraries for 8.0 and 9.0a that are newer."""
    for name in (
        "CMakeLists.txt",
        "csrc/cuda/op.cu",
        "lib/libdlv3p_cpu.so",
        "lib/libdlv3p_cuda.so",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (1000, 2000 if name.startswith("lib") else 1000))
    record = tmp_path / "lib" / "build.json"
    record.write_text('{"CUDA": "13.0 (80-real 90a-real)"}')
    os.utime(record, (2000, 2000))
    return tmp_path


def touch(name: str, time: int = 3000) -> Callable[[Path], None]:
    return lambda root: os.utime(root / name, (time, time))


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


@pytest.mark.parametrize(
    ("change", "capability", "reason"),
    [
        (None, "9.0", None),
        (None, None, None),
        (None, "8.9", "they hold no code for 8.9: 13.0 (80-real 90a-real)"),
        (remove("lib/libdlv3p_cuda.so"), "9.0", "libdlv3p_cuda.so is missing"),
        (touch("csrc/cuda/op.cu"), "9.0", "csrc/cuda/op.cu is newer than the libraries"),
        # The last build had nothing to do for this one.
        (touch("lib/libdlv3p_cpu.so", 500), "9.0", None),
    ],
)
def test_libraries_that_do_not_fit(
    checkout: Path,
    change: Callable[[Path], None] | None,
    capability: str | None,
    reason: str | None,
) -> None:
    if change:
        change(checkout)
    assert build.why_unfit(capability, checkout, checkout / "lib") == reason


def test_build_is_for_the_local_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cmake = executable(tmp_path / "cmake", f'echo "$@" >> {tmp_path}/calls')
    monkeypatch.setattr(build, "_tool", {"cmake": str(cmake)}.get)
    assert build.build("9.0") is None
    calls = (tmp_path / "calls").read_text()
    assert "-DDLV3P_CUDA_ARCHITECTURES=9.0a" in calls
    assert calls.splitlines()[-1].endswith(f"--prefix {build.LIBRARIES}")
    executable(cmake, "echo no compiler; exit 1")
    assert build.build("9.0") == "no compiler\n"


def test_driver_and_clocks_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    executable(tmp_path / "nvidia-smi", 'echo "580.1, 1980, 3201, 1980, 3201, 300.5, 700.0, 41"')
    found = machine.nvidia_smi()
    assert (found["driver_version"], found["clocks.sm"], found["clocks.mem"]) == (
        "580.1",
        "1980",
        "3201",
    )
    executable(tmp_path / "nvidia-smi", "exit 9")
    assert machine.nvidia_smi() == {}
