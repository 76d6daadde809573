"""Run mergekit on YAML files in a process of its own.

    python -m tests.helpers.mergekit_side YAML OUT …

Where it draws random masks it is given ours: the numbers of `lens.merging.worker`. Where it sorts,
the sort is made stable: mergekit leaves to chance which of equal sizes come first, and differences
of bfloat16 weights are full of equal sizes.
"""

import sys
import warnings
from pathlib import Path

import numpy as np


def inject_masks(seed: int = 0) -> None:
    """Let mergekit draw from the numbers that lens draws, tensor by tensor and model by model."""
    import torch
    from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge

    from lens.merging.tensors import chunks_of
    from lens.merging.worker import uniform

    plain = GeneralizedTaskArithmeticMerge.merge_group
    now = {"name": "", "model": 0, "shape": ()}

    def merge_group(self, group, /, **parameters):
        now.update(name=group.metadata.name, model=0, shape=tuple(group.base.tensor.shape))
        return plain(self, group, **parameters)

    def bernoulli(probabilities, **_):
        cuts = chunks_of(now["shape"])
        drawn = [uniform(seed, now["name"], now["model"], c.number, c.size) for c in cuts]
        now["model"] += 1
        numbers = torch.from_numpy(np.concatenate(drawn)).reshape(probabilities.shape)
        return (numbers < probabilities).to(probabilities.dtype)

    GeneralizedTaskArithmeticMerge.merge_group = merge_group
    torch.bernoulli = bernoulli


def sort_stably() -> None:
    """Let equal elements keep their order in every sort."""
    import torch

    sort = torch.sort

    def argsort(x, dim=-1, descending=False, stable=True):
        return sort(x, dim=dim, descending=descending, stable=True).indices

    torch.argsort = torch.Tensor.argsort = argsort
    torch.sort = lambda x, dim=-1, descending=False: sort(
        x, dim=dim, descending=descending, stable=True
    )


def main(arguments: list[str]) -> None:
    """Merge each pair of a YAML file and an output folder."""
    warnings.simplefilter("ignore")
    import torch
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    torch.set_num_threads(1)
    inject_masks()
    sort_stably()
    for source, out in zip(arguments[::2], arguments[1::2], strict=True):
        config = MergeConfiguration.model_validate(yaml.safe_load(Path(source).read_text()))
        run_merge(config, out, options=MergeOptions(quiet=True))


if __name__ == "__main__":
    main(sys.argv[1:])
