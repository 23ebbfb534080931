"""Verbs on whole models: each says what it changed, and what it left alone and why."""

from batchnorm.surgery._changes import Changes as Changes
from batchnorm.surgery.insert import insert as insert
from batchnorm.surgery.recalibrate import recalibrate as recalibrate
