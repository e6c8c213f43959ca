"""Scores that may stand beside one another: of one dtype and one engine where there is a choice, and said where there is none."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from evaluation.score_files import Score, all_scores, answered_by


def read_alike(stems: Mapping[str, Path], engine: str | None = None) -> dict[str, Score]:
    """The scores of several arms, where there is a choice those that most of them have of one dtype and engine: these can be compared."""
    found = {name: all_scores(stem, engine) for name, stem in stems.items()}
    ways = Counter(way for scores in found.values() for way in {_way(score) for score in scores})
    return {name: max(scores, key=lambda score: ways[_way(score)]) for name, scores in found.items() if scores}


def mixed(scores: Mapping[str, Score]) -> dict[str, list[str]]:
    """{"float32, vllm": arms, …} where scores that are compared come from different dtypes or engines, else {}. What an old score does not say differs from
    nothing."""
    told = [_told(score) for score in scores.values()]
    if all(len({one[part] for one in told if one[part]}) < 2 for part in (0, 1)):
        return {}
    ways: dict[str, list[str]] = {}
    for name, score in scores.items():
        ways.setdefault(", ".join(_way(score)) or "unknown", []).append(name)
    return ways


def _way(score: Score) -> tuple[str, ...]:
    return tuple(part for part in _told(score) if part)


def _told(score: Score) -> tuple[str, str]:
    return str(score.about.get("dtype") or ""), answered_by(score)
