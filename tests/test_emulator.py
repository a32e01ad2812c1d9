"""The emulated GPU computes what a GPU would, and finds the errors planted in its self-tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from emulator import build
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
THREADS = 64  # kThreads of emulator/selftest_memory.cu
WARP = 32
NVCC = shutil.which("nvcc")
SEEDS = range(4)

pytestmark = pytest.mark.usefixtures("emulator")
ops = torch.ops.dlv3p_selftest


@pytest.fixture
def emulator() -> ModuleType:
    module = build.load()
    module.reset()
    return module


def ramp(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """1, 2, 3, ...; sums of a few thousand are exact in float32."""
    return torch.arange(1, count + 1, dtype=dtype)


def by_seed(emulator: ModuleType, run: Callable[[], Tensor]) -> list[Tensor]:
    results = []
    for seed in SEEDS:
        emulator.set_seed(seed)
        results.append(run())
    return results


# --- what kernels compute


def test_static_and_dynamic_shared_memory() -> None:
    x = ramp(5 * THREADS)
    assert torch.equal(ops.reverse_twice(x), x)


@pytest.mark.parametrize("half", [False, True])
def test_unwritten_shared_memory_is_poisoned_in_every_block(half: bool) -> None:
    for _ in range(2):  # the first launch left it written
        assert ops.unwritten(ramp(5 * THREADS), half).isnan().all()


def test_launches_are_recorded(emulator: ModuleType) -> None:
    ops.reverse_twice(ramp(THREADS))
    ops.shuffle(ramp(THREADS), 0, 0, WARP)
    assert emulator.launches() == ["reverse_twice_kernel", "shuffle_kernel<float>"]
    emulator.reset()
    assert emulator.launches() == []


@pytest.mark.parametrize("threads", [32, 256, 1024])
def test_sums_of_blocks(threads: int) -> None:
    x = ramp(3 * threads)
    assert torch.equal(ops.block_sum(x, threads), x.view(3, threads).sum(1))
    assert torch.equal(ops.many_barriers(x, threads, 2), x.view(3, threads).sum(1))


@pytest.mark.parametrize("positive", [[], [3], [3, 40], list(range(32, 48)), list(range(64))])
def test_votes(positive: list[int]) -> None:
    x = -torch.ones(2 * WARP)
    x[positive] = 1
    voted = x > 0
    halves = voted.view(4, 16)
    expected = torch.stack(
        [
            voted.sum().expand(2 * WARP),
            voted.any().expand(2 * WARP),
            voted.all().expand(2 * WARP),
            voted.view(2, WARP).sum(1).repeat_interleave(WARP),
            halves.any(1).repeat_interleave(16),
            halves.all(1).repeat_interleave(16),
        ],
        dim=1,
    )
    assert torch.equal(ops.votes(x).view(2 * WARP, 6), expected.float())


def source_lane(kind: int, lane: int, argument: int, width: int) -> int:
    """CUDA C++ Programming Guide, "Warp Shuffle Functions"."""
    first = lane // width * width
    if kind == 0:
        return first + argument % width
    source = (lane - argument, lane + argument, lane ^ argument)[kind - 1]
    inside = source >= first if kind == 1 else source < first + width
    return source if inside else lane


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.float64, torch.int64], ids=str)
@pytest.mark.parametrize("width", [32, 8])
@pytest.mark.parametrize("kind", range(4), ids=["indexed", "up", "down", "xor"])
def test_shuffles(kind: int, width: int, dtype: torch.dtype) -> None:
    x = ramp(2 * WARP, dtype)
    for argument in (0, 1, 5, 16, 31):
        lanes = [source_lane(kind, lane, argument, width) for lane in range(WARP)]
        got = ops.shuffle(x, kind, argument, width)
        assert torch.equal(got.view(2, WARP), x.view(2, WARP)[:, lanes]), argument


def test_a_shuffle_refuses_a_width() -> None:
    with pytest.raises(RuntimeError, match="__shfl_xor_sync: width must be a power of 2"):
        ops.shuffle(ramp(WARP), 3, 1, 12)


def test_lanes_that_do_not_exist_give_nan() -> None:
    got = ops.shuffle(ramp(WARP + 16), 2, 8, WARP)[WARP:]
    assert torch.equal(got[:8], ramp(WARP + 16)[WARP + 8 :])
    assert got[8:].isnan().all()


def test_atomics() -> None:
    x = ramp(4 * THREADS) - 100
    got = ops.atomics(x)
    whole = got.view(torch.int32)
    assert got[0] == x.sum()
    assert whole[1:4].tolist() == [x.sum(), x.max(), x.min()]
    assert whole[4] == whole[5] and whole[4] > 0
    assert whole[6:8].tolist() == [len(x) - 1, 1]
    assert got[8:].view(torch.int64).item() == len(x) << 32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_matrix_instructions(transposed: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    # Small integers: all products and sums are exact, in whatever order.
    a = torch.randint(-8, 9, (32, 64), generator=generator).to(dtype)
    b = torch.randint(-8, 9, (64, 48), generator=generator).to(dtype)
    got = ops.product(a, b.t().contiguous() if transposed else b, transposed)
    assert torch.equal(got, a.float() @ b.float())


@pytest.mark.skipif(not NVCC, reason="no nvcc")
def test_matrix_instructions_compile_for_a_gpu(tmp_path: Path) -> None:
    """The test kernel with the real instructions, which ptxas checks."""
    source = ROOT / "tests" / "emulator" / "selftest_matrix.cu"
    command = [
        str(NVCC), "-std=c++17", "-arch=sm_80", "-DUSE_CUDA", f"-D{build.TORCH_TARGET}",
        f"-I{ROOT / 'csrc' / 'cuda'}", "-isystem", str(build.TORCH / "include"),
        "-cubin", "-o", str(tmp_path / "out"), str(source),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_many_blocks_are_fast() -> None:
    x = ramp(64 * 256)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        ops.many_barriers(x, 256, 1)
        best = min(best, time.perf_counter() - start)
    print(f"64 blocks of 256 threads, 9 barriers each: {best * 1e3:.1f} ms")
    assert best < 1, "144 thousand switches between threads take seconds"


# --- order


def test_a_missing_barrier_shows_between_seeds(emulator: ModuleType) -> None:
    x = ramp(THREADS)
    racing = by_seed(emulator, lambda: ops.missing_barrier(x, False))
    assert any(not torch.equal(result, racing[0]) for result in racing)
    for result in by_seed(emulator, lambda: ops.missing_barrier(x, True)):
        assert torch.equal(result, x.roll(-1))


@pytest.mark.parametrize("blocks", [False, True])
def test_order_of_threads_and_of_blocks_is_shuffled(emulator: ModuleType, blocks: bool) -> None:
    last = by_seed(emulator, lambda: ops.last_wins(ramp(1), blocks))
    assert len({result.item() for result in last}) > 1


def test_a_seed_repeats_its_order(emulator: ModuleType) -> None:
    first, second = (
        by_seed(emulator, lambda: ops.missing_barrier(ramp(THREADS), False)) for _ in range(2)
    )
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("most_pending", [0, 1, 2, 3])
def test_copies_land_in_the_wait_that_covers_them(most_pending: int) -> None:
    x = ramp(3 * 4 * THREADS)
    got = ops.async_copy(x, most_pending).view(3, -1)  # 3: no wait at all
    landed = 3 - most_pending
    assert torch.equal(got[:landed], x.view(3, -1)[:landed])
    assert got[landed:].isnan().all()


# --- planted errors


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        (0, r"48 of 64 threads wait at __syncthreads in .*selftest_sync.cu:\d+, 16 have returned"),
        (1, r"32 of 64 .* __syncthreads in \S+, 32 of 64 .* __syncthreads in \S+, 0 have returned"),
        (2, "32 of 64 threads wait at __syncwarp in .*, 32 have returned"),
        (3, "32 of 64 .* __syncthreads in .*, 32 of 64 .* __syncwarp in .*, 0 have returned"),
        (4, "64 of 64 threads wait at __shfl_sync in .*, 0 have returned"),
    ],
    ids=["early return", "two barriers", "missing lane", "warp against block", "other mask"],
)
def test_divergent_barriers(mode: int, message: str) -> None:
    where = r"^divergent_kernel: block \(0, 0, 0\), divergent barrier: "
    with pytest.raises(RuntimeError, match=where + message):
        ops.divergent(ramp(2 * WARP), mode)
    assert torch.equal(ops.reverse_twice(ramp(THREADS)), ramp(THREADS)), "and all goes on"


BAD_ACCESS = {
    "dynamic write": (2, "wrote past its dynamic shared memory"),
    "static index": (3, r"selftest_memory.cu:\d+: index 64 out of bounds of 'float \[64\]'"),
    "misaligned": (4, "platform.cuh:.*: misaligned address for 'const struct uint4', .* 16 bytes"),
    "null": (5, r"selftest_memory.cu:\d+: null pointer to 'const float'"),
    "misaligned copy": (6, "copy_async_16: the address in shared memory is not aligned"),
    "copy outside shared": (7, "copy_async_16: the address is not in the shared memory"),
    "global store to shared": (9, "store_pack: the address is in shared memory"),
}


@pytest.mark.parametrize("name", BAD_ACCESS)
def test_bad_accesses(name: str) -> None:
    mode, message = BAD_ACCESS[name]
    with pytest.raises(RuntimeError, match="bad_access_kernel: .*" + message):
        ops.bad_access(ramp(THREADS), mode)


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        ((0, 1, 0), "no blocks"),
        ((1, 1025, 0), "more than 1024 threads"),
        ((1, 1, 227 * 1024 + 1), "too much shared memory"),
    ],
)
def test_launches_that_a_gpu_refuses(launch: tuple[int, int, int], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        ops.launch_of(ramp(1), *launch)
    blocks, threads, shared_bytes = launch
    ops.launch_of(ramp(1), max(blocks, 1), min(threads, 1024), min(shared_bytes, 227 * 1024))


# --- build


def test_a_source_that_does_not_compile_is_shown(tmp_path: Path) -> None:
    source = tmp_path / "broken.cu"
    source.write_text("int broken = nonsense;\n")
    with pytest.raises(build.BuildError, match=r"broken.cu:1:14: error: .*nonsense"):
        build.compile_object(source, sanitize=False)


def test_a_change_of_any_header_is_noticed() -> None:
    for source in (ROOT / "csrc" / "cuda").glob("*.cu"):
        command = build.compile_command(source, sanitize=False)
        listed = subprocess.run([*command, "-MM"], cwd=ROOT, capture_output=True, text=True)
        files = listed.stdout.replace("\\\n", " ").split()[1:]
        used = {Path(os.path.normpath(ROOT / name)) for name in files}
        assert used <= set(build.with_headers(source)), source
