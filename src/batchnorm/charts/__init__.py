"""Rows in, Altair charts out: learning curves, sweeps over a setting, intervals.

Colors are fixed, readable on a light and on a dark page, and never alone: dash or shape says the
same. Axes, text and grid carry no color, so that the page's theme decides. A value that is None or
not finite (a diverged run) is never drawn as a number.
"""

from batchnorm.charts.bars import intervals as intervals
from batchnorm.charts.files import pictures as pictures
from batchnorm.charts.files import rows_of as rows_of
from batchnorm.charts.files import table as table
from batchnorm.charts.halves import halves as halves
from batchnorm.charts.lines import curves as curves
from batchnorm.charts.lines import sweep as sweep
