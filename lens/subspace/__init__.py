"""Language subspaces: fit, choice of rank, principal angles, projection, thin factorisations.

NumPy arrays or CPU torch tensors in, NumPy arrays out; tensors on another device stay there (see
`lens.tensors`).
"""

from lens.subspace._factors import ThinQr, ThinSvd, thin_qr, thin_svd
from lens.subspace._fit import SubspaceResult, fit, fit_batch
from lens.subspace._geometry import principal_angles, project

__all__ = [
    "SubspaceResult",
    "ThinQr",
    "ThinSvd",
    "fit",
    "fit_batch",
    "principal_angles",
    "project",
    "thin_qr",
    "thin_svd",
]
