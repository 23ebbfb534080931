"""Data sets as tensors, split once: learn on one set, choose on the second, judge on the third."""

from batchnorm.data._data import Data as Data
from batchnorm.data._data import Examples as Examples
from batchnorm.data._data import split as split
from batchnorm.data._load import NAMES as NAMES
from batchnorm.data._load import load as load
