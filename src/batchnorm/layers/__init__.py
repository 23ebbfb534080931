"""Layers that replace torch's batch norms one for one, and those with an activation fused in."""

from batchnorm.layers._in_domain import in_domain as in_domain
from batchnorm.layers._masked import lengths_mask as lengths_mask
from batchnorm.layers._masked import masked as masked
from batchnorm.layers._pooled import pooled as pooled
from batchnorm.layers._snapshot import Snapshot as Snapshot
from batchnorm.layers._snapshot import snapshot as snapshot
from batchnorm.layers._switches import switches as switches
from batchnorm.layers.act import BatchNormAct1d as BatchNormAct1d
from batchnorm.layers.act import BatchNormAct2d as BatchNormAct2d
from batchnorm.layers.act import BatchNormAct3d as BatchNormAct3d
from batchnorm.layers.batch_norm import BatchNorm1d as BatchNorm1d
from batchnorm.layers.batch_norm import BatchNorm2d as BatchNorm2d
from batchnorm.layers.batch_norm import BatchNorm3d as BatchNorm3d
from batchnorm.layers.domains import DomainBatchNorm1d as DomainBatchNorm1d
from batchnorm.layers.domains import DomainBatchNorm2d as DomainBatchNorm2d
from batchnorm.layers.domains import DomainBatchNorm3d as DomainBatchNorm3d
from batchnorm.layers.lazy import LazyBatchNorm1d as LazyBatchNorm1d
from batchnorm.layers.lazy import LazyBatchNorm2d as LazyBatchNorm2d
from batchnorm.layers.lazy import LazyBatchNorm3d as LazyBatchNorm3d
from batchnorm.layers.variants import BatchRenorm1d as BatchRenorm1d
from batchnorm.layers.variants import BatchRenorm2d as BatchRenorm2d
from batchnorm.layers.variants import BatchRenorm3d as BatchRenorm3d
