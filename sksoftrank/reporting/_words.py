"""What words on a page mean, for those who don't train networks."""

from __future__ import annotations

from sksoftrank.reporting._page import Page

IN_DISTRIBUTION = "in distribution"
WORDS = (
    (
        IN_DISTRIBUTION,
        "Rows of the kind that the model was trained on, but other ones.",
    ),
    (
        "under shift",
        "Rows of another kind: later, from elsewhere, or distorted. A model is as a "
        "rule less often right there, and by how much is what to look at.",
    ),
    (
        "baseline",
        "What anybody would have trained without a search. A choice has to beat it on "
        "trainings that played no part in its being chosen.",
    ),
    (
        "fresh seeds",
        "Trainings from other random beginnings. The best of many is partly luck, and "
        "luck does not repeat.",
    ),
    (
        "interval",
        "Where the true value would lie, 19 times out of 20, were all done again.",
    ),
    (
        "temperature",
        "A dial of training. A high one leads to an embedding of few directions, a low "
        "one to one of many.",
    ),
    (
        "embedding",
        "The columns that the model makes of a row before it decides on a class.",
    ),
    ("rank", "How many directions of the embedding hold more than next to nothing."),
    ("trial", "One setting of the parameters that the search tried."),
)


def words_of(page: Page) -> list[tuple[str, str]]:
    """Return those of the words that a page uses."""
    text = repr(page).lower()
    return [(word, meaning) for word, meaning in WORDS if word in text]
