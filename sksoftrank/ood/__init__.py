"""Out of distribution: how well rows are told apart, and what accuracy is left there.

Scores of detectors are higher for rows that look more in-distribution, as in
scikit-learn's outlier detectors.
"""

from sksoftrank.ood._calibration import expected_calibration_error
from sksoftrank.ood._detection import (
    aupr_in,
    aupr_out,
    auroc,
    detection_report,
    fpr_at_tpr,
    threshold_at_tpr,
)
from sksoftrank.ood._probe import linear_probe_score
from sksoftrank.ood._report import ood_report
from sksoftrank.ood._scorer import make_ood_scorer

__all__ = [
    "aupr_in",
    "aupr_out",
    "auroc",
    "detection_report",
    "expected_calibration_error",
    "fpr_at_tpr",
    "linear_probe_score",
    "make_ood_scorer",
    "ood_report",
    "threshold_at_tpr",
]
