"""Reports: single HTML files that open from disk."""

from lawdnet.report.curriculum import CurriculumContent, curriculum_report
from lawdnet.report.dataset import inspect_report
from lawdnet.report.quickstart import QuickstartContent, quickstart_report
from lawdnet.report.run import run_report

__all__ = [
    "CurriculumContent",
    "QuickstartContent",
    "curriculum_report",
    "inspect_report",
    "quickstart_report",
    "run_report",
]
