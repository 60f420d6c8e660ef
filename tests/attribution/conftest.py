"""Fixtures of the attribution tests."""

from support.small_attribution import make_task

__all__ = ["make_task"]
