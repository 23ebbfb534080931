"""Verbs on whole models: each says what it changed, and what it left alone and why."""

from batchnorm.surgery._changes import Changes as Changes
from batchnorm.surgery._kinds import is_batch_norm as is_batch_norm
from batchnorm.surgery.adopt import adopt as adopt
from batchnorm.surgery.insert import insert as insert
from batchnorm.surgery.recalibrate import recalibrate as recalibrate
from batchnorm.surgery.remove import remove as remove
