"""Batch normalization for PyTorch: layers, surgery, and studies of what batch norm does.

The textbook is `batchnorm.equations`; `batchnorm.interop` speaks other frameworks' forms;
`batchnorm.data` and `batchnorm.train` are what the studies train on and with.
"""

from batchnorm import functional as functional
from batchnorm import interop as interop
from batchnorm._version import __version__ as __version__
from batchnorm.kernels import backends as backends
from batchnorm.kernels import keep_freed_memory as keep_freed_memory
from batchnorm.kernels import warmup as warmup
from batchnorm.layers import BatchNorm1d as BatchNorm1d
from batchnorm.layers import BatchNorm2d as BatchNorm2d
from batchnorm.layers import BatchNorm3d as BatchNorm3d
from batchnorm.layers import BatchNormAct1d as BatchNormAct1d
from batchnorm.layers import BatchNormAct2d as BatchNormAct2d
from batchnorm.layers import BatchNormAct3d as BatchNormAct3d
from batchnorm.layers import BatchRenorm1d as BatchRenorm1d
from batchnorm.layers import BatchRenorm2d as BatchRenorm2d
from batchnorm.layers import BatchRenorm3d as BatchRenorm3d
from batchnorm.layers import DomainBatchNorm1d as DomainBatchNorm1d
from batchnorm.layers import DomainBatchNorm2d as DomainBatchNorm2d
from batchnorm.layers import DomainBatchNorm3d as DomainBatchNorm3d
from batchnorm.layers import LazyBatchNorm1d as LazyBatchNorm1d
from batchnorm.layers import LazyBatchNorm2d as LazyBatchNorm2d
from batchnorm.layers import LazyBatchNorm3d as LazyBatchNorm3d
from batchnorm.layers import Snapshot as Snapshot
from batchnorm.layers import in_domain as in_domain
from batchnorm.layers import lengths_mask as lengths_mask
from batchnorm.layers import masked as masked
from batchnorm.layers import pooled as pooled
from batchnorm.layers import snapshot as snapshot
from batchnorm.layers import switches as switches
from batchnorm.observe import record as record
from batchnorm.studies import Run as Run
from batchnorm.studies import study as study
from batchnorm.surgery import Changes as Changes
from batchnorm.surgery import adopt as adopt
from batchnorm.surgery import insert as insert
from batchnorm.surgery import recalibrate as recalibrate
from batchnorm.surgery import remove as remove
