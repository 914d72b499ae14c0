"""The Triton kernels without a GPU: their law in the interpreter, their machine code for an H200."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LAW_TESTS = ("test_kernels_statistics.py", "test_kernels_sampling.py", "test_kernels_greedy.py")

pytestmark = pytest.mark.skipif(INTERPRETED, reason="starts the interpreter itself")

POINTERS = {
    "logits_ptr": "*fp32",
    "sampled_ptr": "*i64",
    "uniform_ptr": "*fp64",
    "id_ptr": "*i32",
    "top2_ids_ptr": "*i64",
}
ALIGNED = ("row_stride", "vocab")


@pytest.mark.long
def test_the_kernels_pass_the_law_tests_in_the_interpreter() -> None:
    """In a process of its own: Triton decides when it is imported whether it interprets."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *(str(HERE / name) for name in LAW_TESTS),
    ]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed is not None
    assert int(passed.group(1)) >= 30


def resources(
    kernel: Any, constants: dict[str, Any], warps: int, logits: str, ids: str, folder: Path
) -> tuple[str, dict[str, int]]:
    """PTX, and registers and bytes of stack and local memory, of a kernel compiled for sm_90."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = constants | {"token_stride": 1}
    types = POINTERS | {"logits_ptr": logits, "id_ptr": ids}
    names = kernel.arg_names
    constants = {name: constants[name] for name in names if name in constants}
    signature = {
        name: "constexpr"
        if name in constants
        else types.get(name, "*fp32" if name.endswith("_ptr") else "i32")
        for name in names
    }
    source = ASTSource(
        kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={
            (names.index(name),): [["tt.divisibility", 16]]
            for name in names
            if name.endswith("_ptr") or name in ALIGNED
        },
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    cubin = folder / f"{kernel.__name__}.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run(
        [cuobjdump, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
    ).stdout
    figures = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
    return compiled.asm["ptx"], {name: int(value) for name, value in figures.items()}


@pytest.mark.parametrize("logits", ["*fp32", "*bf16"])
@pytest.mark.parametrize("bounds", [False, True])
@pytest.mark.parametrize("block", [1024, 4096])
def test_the_kernels_compile_for_an_h200_without_spilling(
    logits: str, bounds: bool, block: int, tmp_path: Path
) -> None:
    from sglang_power_kernels import triton_backend, triton_sampling, triton_statistics

    flags: dict[str, Any] = {"HAS_MIN": bounds, "HAS_MAX": bounds, "BLOCK": block, "TILES": 262_144 // block}
    for kernel, partials, warps, ids in (
        (triton_statistics.tile_statistics, triton_statistics.PARTIALS, triton_backend.TILE_WARPS, "*i32"),
        (triton_statistics.merge_statistics, triton_statistics.PARTIALS, triton_backend.MERGE_WARPS, "*i32"),
        (triton_sampling.tile_mass, triton_sampling.PARTIALS, triton_backend.TILE_WARPS, "*i32"),
        (triton_sampling.pick_token, triton_sampling.PARTIALS, triton_backend.TILE_WARPS, "*i64"),
    ):
        ptx, used = resources(kernel, flags | {"PARTIALS": partials}, warps, logits, ids, tmp_path)
        assert (used["STACK"], used["LOCAL"]) == (0, 0), kernel
        assert used["REG"] <= 128, kernel
        if kernel in (triton_statistics.tile_statistics, triton_sampling.tile_mass):
            assert re.search(r"ld\.global\.v[24]", ptx), "scalar loads"


def test_tiles_are_small_when_the_batch_would_leave_the_device_idle() -> None:
    from sglang_power_kernels.triton_backend import tiling

    assert tiling(1, 151_936) == (1024, 149)
    assert tiling(256, 151_936) == (4096, 38)
    assert tiling(4, 1) == (1, 1)
    assert tiling(1, 262_144) == (1024, 256)
