"""The search for what holds up under a shift.

`protocol` says what is trained on and scored, `space` what may be tried, `evaluation`
fits and scores it, `study` asks Optuna for trials and tells it their scores (kept where
`storage` says, of what `fingerprint` says), `choice` chooses, `results` lays it out.
"""

from sksoftrank.search.ood.search import OODSearchCV

__all__ = ["OODSearchCV"]
