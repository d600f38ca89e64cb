"""The names under which the plugin logs; docs/metrics.md explains each."""

PREFIX = "sobolev"


def term(stage: str, key: str) -> str:
    """One term: unweighted, divided by its scale."""
    return f"{stage}/{PREFIX}/{key}"


def total(stage: str) -> str:
    """The weighted sum of all terms, as added to the loss."""
    return f"{stage}/{PREFIX}/total"


def weight(stage: str, key: str) -> str:
    """The weight that a balanced term has at present."""
    return f"{stage}/{PREFIX}/{key}_weight"


def harm_ratio(stage: str) -> str:
    """Value loss over that of a twin trained without derivative terms."""
    return f"{stage}/{PREFIX}/harm_ratio"


def unknown_rows(stage: str, key: str) -> str:
    """Rows of the batch in which the target of a term has no known entry."""
    return f"{stage}/{PREFIX}/{key}_unknown_rows"


def skipped_rows(stage: str, key: str) -> str:
    """Rows of the batch that were left out because the teacher's answer is not finite."""
    return f"{stage}/{PREFIX}/{key}_skipped_rows"
