"""Batch norm as a function."""

from batchnorm.functional.batch_norm import batch_norm as batch_norm
