"""The command `sglang-power`: wiring of its commands, mistakes name their option. Error rate 0."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sglang_power import cli

TINY = ["bench", "kernels", "--device", "cpu", "--batches", "1", "2", "--vocabs", "1000", "--rounds", "1"]


def test_a_tiny_benchmark_writes_its_files_and_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "results"
    command = [*TINY, "--threads", "1", "--output", str(folder)]
    assert cli.main(command) == 0
    assert {path.name for path in folder.iterdir()} == {"cpu_1_thread.json", "results.md"}
    report = json.loads((folder / "cpu_1_thread.json").read_text())
    assert report["command"].endswith(f"sglang-power {' '.join(command)}")
    assert (report["threads"], report["rounds"]) == (1, 1)
    assert {(timing["batch"], timing["vocab"]) for timing in report["timings"]} == {(1, 1000), (2, 1000)}
    printed = capsys.readouterr().out
    assert "not run on CUDA" in printed
    assert f"wrote {folder / 'results.md'}" in printed


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--device", "tpu"], 'argument --device: must be "cpu", "cuda" or "cuda:N", got "tpu"'),
        (["--batches", "0"], "argument --batches: must be at least 1, got 0"),
        (["--batches"], "argument --batches: expected at least one argument"),
        (["--vocabs", "many"], "argument --vocabs: invalid int value: 'many'"),
        (["--vocabs", "1"], "argument --vocabs: must be at least 2, got 1"),
        (["--backends", "cutlass"], "argument --backends: must be among torch, reference on cpu"),
        (["--rounds", "0"], "argument --rounds: must be at least 1, got 0"),
        (["--threads", "-1"], "argument --threads: must be at least 1, got -1"),
        (["--output", __file__], "argument --output: "),
        (["--quick"], "unrecognized arguments: --quick"),
    ],
)
def test_a_wrong_argument_of_the_benchmark_is_named(
    wrong: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([*TINY, "--output", str(tmp_path), *wrong])
    assert left.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_bench_needs_a_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["bench"])
    assert left.value.code == 2
    assert "the following arguments are required: benchmark" in capsys.readouterr().err


def test_check_imports_neither_torch_nor_sglang() -> None:
    """In a process of its own; nothing listens on port 9 (discard), so the command ends with status 2."""
    script = (
        "import sys\n"
        "from sglang_power.cli import main\n"
        "status = main(['check', '--url', 'http://127.0.0.1:9', '--timeout', '5'])\n"
        "print(status, sorted({'torch', 'sglang', 'sglang_power_kernels'} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "2 []"


def test_the_benchmarks_yardstick_is_sglangs_own_sampler() -> None:
    """The replica draws what SGLang draws: the same ids from the same generator state."""
    import torch
    from sglang.srt.layers.sampler import sampling_from_probs_torch
    from sglang_power_kernels.benchmark.stock import exponential_race

    probs = torch.softmax(torch.randn(50, 200, generator=torch.Generator().manual_seed(1)), dim=-1)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        theirs = sampling_from_probs_torch(probs.clone())
        torch.manual_seed(2)
        ours = exponential_race(probs.clone())
    assert ours.dtype == theirs.dtype
    assert ours.tolist() == theirs.tolist()
    assert len(set(ours.tolist())) > 10
