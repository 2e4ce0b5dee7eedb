"""Volumes, labels and phantoms: the part of the package that reads and writes the disk."""

from ctsam3d.data import labels

__all__ = ["labels"]
