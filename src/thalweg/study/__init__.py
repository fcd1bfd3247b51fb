"""Studies: a grid of cells, resumable one by one, and the table of claims over it."""

from .result import study
from .spec import Study, read_study

__all__ = ["Study", "read_study", "study"]
