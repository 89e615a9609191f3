"""Acquisitions on a real Micro-Manager core."""
