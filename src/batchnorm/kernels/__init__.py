"""Backends: ways to compute batch norm. No autograd, no checks."""
