"""Studies: what is taught about batch norm, measured on real data."""

from batchnorm.studies._run import Plan as Plan
from batchnorm.studies._run import Progress as Progress
from batchnorm.studies._run import Run as Run
from batchnorm.studies._run import Share as Share
from batchnorm.studies._run import overview as overview
from batchnorm.studies._run import remeasure as remeasure
from batchnorm.studies._run import study as study
