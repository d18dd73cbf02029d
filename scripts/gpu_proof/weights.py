"""Writes the random weights of a shape: NAME model|mmproj FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

from halfv_edge.measure.bench import shapes

name, which, folder = sys.argv[1:]
shape = shapes.SHAPES[name]
if which == "model":
    shapes.model_file(name, shape, "q4_0", Path(folder))
else:
    shapes.mmproj_file(name, shape, Path(folder))
