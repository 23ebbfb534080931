"""Verbs on whole models: each returns a new model, and says what it changed and what it left."""

from batchnorm.surgery._changes import Changes as Changes
from batchnorm.surgery.insert import insert as insert
