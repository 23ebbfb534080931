"""Batch norm as a function."""
