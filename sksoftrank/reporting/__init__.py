"""One page of HTML that says what was tried, what was chosen and why, and what it does.

It needs nothing beside itself: pictures and style are in the file, and no script.
"""

from sksoftrank.reporting._report import report

__all__ = ["report"]
