"""The report of a survey: sentences, tables, figures, one self-contained page. Never imports torch.

Everything is read from the survey's JSON, so a report can be made again without the model.
"""

from .figures import cross_section, write_cross_section
from .page import report_run, write_report
from .sentences import headline, row_sentence
from .tables import terminal

__all__ = [
    "cross_section",
    "headline",
    "report_run",
    "row_sentence",
    "terminal",
    "write_cross_section",
    "write_report",
]
