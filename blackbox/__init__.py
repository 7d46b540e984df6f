"""Gradient-free / zeroth-order black-box optimization."""
