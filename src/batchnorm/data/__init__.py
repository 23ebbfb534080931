"""Data sets as tensors, split once: learn on one set, choose on the second, judge on the third."""

from batchnorm.data._data import Data, Examples, split
from batchnorm.data._load import load

__all__ = ["Data", "Examples", "load", "split"]
