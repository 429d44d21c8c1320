"""KD(C), table 1 and its figures 2 and 3: every calibrator alone, and students of calibrated teachers.

    python -m experiments.table1 --plan
    python -m experiments.table1 --config=configs/table1.py:cpu --workdir runs/table1_cpu

CIFAR-100, WRN-40-2 teaching WRN-40-1 and MobileNetV2. What the rows are is said in experiments/transfer.py, the sizes
in configs/table1.py.
"""

from __future__ import annotations

from experiments import common, published, transfer
from experiments.command import Command

IGNORED = transfer.IGNORED


def run(given: Command) -> None:
    transfer.run(
        given,
        "table1",
        published.TABLE1,
        title="KD(C), table 1: does calibration transfer by distillation?",
        source=f"{published.KDC}, table 1",
    )


if __name__ == "__main__":
    common.main(run, "configs/table1.py", workdir="runs/table1", ignored=IGNORED)
