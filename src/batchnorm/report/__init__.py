"""The page of a run, drawn from its folder."""

from batchnorm.report._page import render as render
