"""The registers and shared memory that the GPU kernels take; they are compiled without a GPU."""

import json
import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="triton is only for Linux")
from benchmarks import cuda_resources, triton_resources  # noqa: E402
from tests.nvcc import nvcc  # noqa: E402

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def used() -> dict[str, dict[str, int]]:
    """The resources of every kernel for every architecture."""
    return triton_resources.table()


def test_nothing_spills_and_everything_fits(used) -> None:
    """Only with the Triton version of the recorded table: 3.6 spills 8 bytes in one kernel."""
    if (
        json.loads(triton_resources.RECORDED.read_text(encoding="utf-8"))["triton"]
        != triton.__version__
    ):
        pytest.skip(f"Triton {triton.__version__}")
    for name, kernel in used.items():
        architecture = int(name.rpartition("sm_")[2])
        assert architecture in triton_resources.ARCHITECTURES
        assert kernel["spilled"] == 0, name
        assert kernel["shared"] <= triton_resources.MAX_SHARED[architecture], name
        assert kernel["registers"] * kernel["threads"] <= triton_resources.MAX_BLOCK_REGISTERS, name


def test_every_kernel_is_in_the_table(used) -> None:
    folder = ROOT / "kernels"
    names = {
        name
        for path in folder.glob("*.py")
        for name in re.findall(r"^def (\w+_kernel)\(", path.read_text(encoding="utf-8"), re.M)
    }
    assert names
    assert {name.split(": ")[1].split(",")[0] for name in used} == names


def test_the_table_is_the_recorded_one(used) -> None:
    recorded = json.loads(triton_resources.RECORDED.read_text(encoding="utf-8"))
    assert set(recorded["kernels"]) == set(used)
    if recorded["triton"] != triton.__version__:
        pytest.skip(f"recorded with Triton {recorded['triton']}")
    assert recorded["kernels"] == used


def test_nvcc_compiles_every_kernel_without_a_spill() -> None:
    compiler = nvcc()
    if compiler is None:
        pytest.skip("nvcc was not found")
    try:
        used = cuda_resources.table(compiler)
    except subprocess.CalledProcessError as error:
        pytest.fail(error.stderr)
    kernels = {name.split("<")[0] for name in used}
    folder = ROOT / "csrc" / "cuda"
    sources = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.cu")}
    # conv_add.cu has no kernel of its own: it launches the one in conv_wgmma.cu.
    assert kernels == {f"{stem}_kernel" for stem, text in sources.items() if "__global__" in text}
    for name, kernel in used.items():
        assert kernel["spilled"] == 0, name
        assert kernel["shared"] <= 48 * 1024, name
    recorded = json.loads(cuda_resources.RECORDED.read_text(encoding="utf-8"))
    assert set(recorded["kernels"]) == set(used)
    if recorded["nvcc"] == cuda_resources.version(compiler):
        assert recorded["kernels"] == used
