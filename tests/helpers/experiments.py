"""Experiments that are read or trained in seconds, as text."""

LEAST = """\
name: x
data:
  bios: {train_people: 5}
model:
  tiny: {}
arms:
  pit:
    preset: pit
"""
"""No more than a file must say."""
_TINY = """\
name: %s
runs: {runs}
data: {{bios: {{replay_people: %d, train_people: %d, test_people: %d}}}}
model: {{tiny: {{hidden_size: %d, layers: %d}}}}
"""


def tiny(name: str, replay: int, train: int, test: int, hidden: int = 32, layers: int = 1) -> str:
    """The first four lines of an experiment on so many made people, for .format(runs=FOLDER): in what follows braces stand doubled."""
    return _TINY % (name, replay, train, test, hidden, layers)
