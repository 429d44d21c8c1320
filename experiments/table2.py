"""KD(C), table 2: on CIFAR-10 a small teacher of a large student, and self-distillation.

    python -m experiments.table2 --plan
    python -m experiments.table2 --config=configs/table2.py:cpu --workdir runs/table2_cpu

MobileNetV2 teaching (a) ResNet-50 and (b) itself. What the rows are is said in experiments/transfer.py, the sizes in
configs/table2.py.
"""

from __future__ import annotations

from experiments import common, published, transfer
from experiments.command import Command

IGNORED = transfer.IGNORED


def run(given: Command) -> None:
    transfer.run(
        given,
        "table2",
        published.TABLE2,
        title="KD(C), table 2: does calibration transfer to a larger student, and to itself?",
        source=f"{published.KDC}, table 2",
    )


if __name__ == "__main__":
    common.main(run, "configs/table2.py", workdir="runs/table2", ignored=IGNORED)
