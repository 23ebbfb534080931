"""Studies: what is taught about batch norm, measured on real data."""

from batchnorm.studies._run import Run as Run
from batchnorm.studies._run import study as study
from batchnorm.studies._sitting import Progress as Progress
