"""Multiple choice: the letter that an answer means, and circular evaluation (MMBench, arXiv:2307.06281)."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

import numpy as np

from ..items import Item
from .averages import Average, by_group, refuse

_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LAST_WORDS = 4  # a letter in front of them is taken for an article or a name
NO_ANSWER = "Z"


def chosen_letter(answer: str, choices: Mapping[str, str]) -> str | None:
    """The choice that an answer means, None where it can't be told, by VLMEvalKit's rules without a judge.

    1. Exactly one of the letters is a word of its own among the answer's last four: that one.
    2. No letter is, and the answer says "Z": none.
    3. The answer isn't much longer than the choices, and contains the text of exactly one of them: that one.
    """
    words = answer.translate(_MARKS).split()
    letters = [letter for letter in choices if letter in words]
    if len(letters) == 1 and words.index(letters[0]) >= len(words) - _LAST_WORDS:
        return letters[0]
    if not letters and NO_ANSWER in words:
        return None
    if len(answer) > 2 * sum(map(len, choices.values())):
        return None
    named = [letter for letter, text in choices.items() if text.lower() in answer.lower()]
    return named[0] if len(named) == 1 else None


class MultipleChoice(Average):
    """Right is the letter of the right choice; of questions with one `group` (rotations), all or none are right.

    Figures: `accuracy`, and where there are groups `accuracy_single`, the share of right answers without regard to
    them; `unclear` is the share of answers that name no choice.
    """

    name = "multiple_choice"

    def check(self, item: Item) -> None:
        choices = item.facts.get("choices")
        if not isinstance(choices, Mapping) or not choices or not all(key in string.ascii_uppercase for key in choices):
            raise refuse(item, "choices", "no choices", 'give them: "choices": {"A": ..., "B": ...} or a list')
        if len(item.expected) != 1 or item.expected[0] not in choices:
            known = ", ".join(choices)
            raise refuse(
                item, "answer", f"the answer {list(item.expected)} is none of the letters {known}", "correct it"
            )

    def score(self, answer: str, item: Item) -> float:
        return chosen_letter(answer, item.facts["choices"]) == item.expected[0]

    def tally(self, answers: Sequence[str], items: Sequence[Item]) -> np.ndarray:
        """Rows of (right, 1), those of a group in its first row."""
        scores, rows = self.scores(answers, items), np.zeros((len(items), 2))
        for group in by_group(items):
            rows[group[0]] = min(scores[place] for place in group), 1
        return rows

    def figures(self, answers: Sequence[str], items: Sequence[Item]) -> Mapping[str, float]:
        result = dict(super().figures(answers, items))
        if len(by_group(items)) < len(items):
            result["accuracy_single"] = 100 * float(np.mean(self.scores(answers, items)))
        chosen = [chosen_letter(answer, item.facts["choices"]) for answer, item in zip(answers, items, strict=True)]
        return result | {"unclear": 100 * chosen.count(None) / len(chosen)}
