"""What a job will need, and everything that is wrong with it, before any weight is read.

`plan_training` is the plan of `lens.train`, `plan_probing` that of `lens.probe`. Models are known
from configs and safetensors headers alone (`model`); `checks` lists every problem, `memory` holds
the formulas. Importing this package imports no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
