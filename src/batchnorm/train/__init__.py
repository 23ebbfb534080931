"""Mini-batch gradient descent, with or without batch norm: one loop, any torch optimizer."""

from batchnorm.train._descent import OPTIMIZERS as OPTIMIZERS
from batchnorm.train._descent import MakeOptimizer as MakeOptimizer
from batchnorm.train._evaluate import evaluate as evaluate
from batchnorm.train._fits import take_sizes as take_sizes
from batchnorm.train._repeatable import batches as batches
from batchnorm.train._repeatable import seeded as seeded
from batchnorm.train._rows import Row as Row
from batchnorm.train._train import train as train
