"""Vendors' folders against the layouts, and the expected reading of every listed name."""
