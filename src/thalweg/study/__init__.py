"""Studies: a grid of cells, resumable one by one, and the table of claims over it."""

from .file import read_study
from .result import study
from .spec import Study

__all__ = ["Study", "read_study", "study"]
