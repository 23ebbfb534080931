"""Eyes: what the hidden units' distributions do while a model trains."""

from batchnorm.observe.record import record as record
