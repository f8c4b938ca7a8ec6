"""GPUs by name: the published figures that a step on them is modelled from.

The vendor publishes these figures in each card's data sheet.
"""

from dataclasses import dataclass

from scalekd.errors import InputError
from scalekd.recipe import Precision


@dataclass(frozen=True)
class Gpu:
    """The published figures of one GPU.

    Attributes:
        label: The vendor's name.
        memory: GB of memory.
        fp32: Peak TFLOP/s in float32 without tensor cores; torch uses TF32 for matrix products
            only where that is switched on.
        half: Peak TFLOP/s of the tensor cores in fp16 or bf16, accumulated in float32, dense.
        bandwidth: GB/s of the memory.
        bf16: Whether the GPU supports bf16, and TF32 with it.
        half_rate: Whether its tensor cores accumulate in float32 at half of the rate in fp16, as
            those of GeForce cards do.
    """

    label: str
    memory: float
    fp32: float
    half: float
    bandwidth: float
    bf16: bool = True
    half_rate: bool = False

    @property
    def tf32(self) -> float:
        """Peak TFLOP/s of products of float32 numbers in TF32; in float32 where there is none."""
        return self.half / 2 if self.bf16 else self.fp32


GPUS = {
    "b200": Gpu("B200 SXM", 180, 75, 2250, 7700),
    "h200": Gpu("H200 SXM", 141, 67, 989, 4800),
    "h100": Gpu("H100 SXM", 80, 67, 989, 3350),
    "h100-pcie": Gpu("H100 PCIe", 80, 51, 756, 2000),
    "a100": Gpu("A100 80GB SXM", 80, 19.5, 312, 2039),
    "a100-40": Gpu("A100 40GB SXM", 40, 19.5, 312, 1555),
    "l40s": Gpu("L40S", 48, 91.6, 362, 864),
    "a10": Gpu("A10", 24, 31.2, 125, 600),
    "rtx-pro-6000-max-q": Gpu("RTX PRO 6000 Max-Q", 96, 110, 439, 1792),
    "rtx5090": Gpu("GeForce RTX 5090", 32, 104.8, 209.5, 1792, half_rate=True),
    "rtx4090": Gpu("GeForce RTX 4090", 24, 82.6, 165.2, 1008, half_rate=True),
    "rtx3090": Gpu("GeForce RTX 3090", 24, 35.6, 71.2, 936, half_rate=True),
    "v100": Gpu("V100 SXM2 32GB", 32, 15.7, 125, 900, bf16=False),
    "t4": Gpu("T4", 16, 8.1, 65, 300, bf16=False),
}


def find_gpu(name: str, precision: Precision) -> Gpu:
    """The GPU called `name`.

    Raises:
        InputError: `name` is not in `GPUS`, or the GPU has no bf16 and `precision` needs it.
    """
    if name not in GPUS:
        raise InputError(f"gpu is {name!r}, which is not known: choose one of {', '.join(GPUS)}")
    gpu = GPUS[name]
    if precision == "bf16-mixed" and not gpu.bf16:
        raise InputError(
            f"precision is bf16-mixed, but the {gpu.label} has no bf16: set precision to 16-mixed "
            "or 32-true"
        )
    return gpu
