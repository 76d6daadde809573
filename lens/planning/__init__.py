"""Say what a job will need, and everything that is wrong with it, before any weight is read.

`checkpoints` and `structures` know models from configs and safetensors headers alone, `known` what
every job has; `training` is the plan of `lens.train`, `probing` that of `lens.probe`. Importing
this package imports no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
