"""What the command line shows on a terminal, or writes into a log."""

from batchnorm.screen._findings import findings as findings
from batchnorm.screen._listing import listing as listing
from batchnorm.screen._watched import Watched as Watched
