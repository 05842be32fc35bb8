"""The metrics: scores of answers, and what the headline of a set is computed from.

Sources: VQA accuracy, Antol et al. 2015 (arXiv:1505.00468), as EvalAI normalizes answers for TextVQA; ANLS, Biten et
al. 2019 (arXiv:1905.13648); relaxed accuracy, Masry et al. 2022 (arXiv:2203.10244, section 5.1); multiple choice with
circular evaluation, MMBench (arXiv:2307.06281), letters by VLMEvalKit's rules without a judge; yes or no, POPE
(arXiv:2305.10355) by its own script; boxes as InternVL's `evaluate_grounding.py` reads them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from ..datasets.records.boxes import BOX, FRAME_SIZE
from ..errors import SettingError
from ..inference.questions import Question

NUM_ANNOTATORS = 10  # of VQA accuracy
AGREEMENT = 3  # annotators who say the same make an answer right
TOLERANCE = 0.05  # of the right number, in relaxed accuracy
THRESHOLD = 0.5  # of ANLS and IoU


def by_category(questions: Sequence[Question]) -> dict[str, list[int]]:
    """Positions of the questions of each category; a question may be in none, one or several."""
    found: dict[str, list[int]] = {}
    for position, question in enumerate(questions):
        names = question.facts.get("category") or ()
        for name in names if isinstance(names, (list, tuple)) else (names,):
            found.setdefault(str(name), []).append(position)
    return found


def by_group(questions: Sequence[Question]) -> list[list[int]]:
    """Positions of the questions that count together, in order; a question without a `group` is alone."""
    found: dict[object, list[int]] = {}
    for position, question in enumerate(questions):
        group = question.facts.get("group")
        found.setdefault(position if group is None else str(group), []).append(position)
    return list(found.values())


def share(sums: np.ndarray) -> np.ndarray:
    """Percent `[...]` of sums `[..., C, 2]` of parts and wholes: the mean over C; 0 for a whole of 0."""
    part, whole = np.moveaxis(np.asarray(sums, dtype=float), -1, 0)
    return 100.0 * np.divide(part, whole, out=np.zeros(part.shape), where=whole != 0).mean(axis=-1)


class Metric:
    """A measure of answers, in figures that are shares in percent.

    Attributes:
        name: As on the command line and in results.json.
        headline: The key of `figures` by which models are compared.
        higher_is_better: Whether more of the headline is better; False for error rates.
        averages_categories: Whether a figure is computed within each category and averaged over them; questions
            without a category are a further one.
    """

    name: str
    headline = "accuracy"
    higher_is_better = True
    averages_categories = False

    def score(self, answer: str, question: Question) -> float:
        """How good one answer is, in [0, 1]."""
        raise NotImplementedError

    def problem(self, question: Question) -> tuple[str, str] | None:
        """What keeps a question from being measured, and the remedy."""
        if not any(text.strip() for text in question.expected):
            return "no right answer", "give one: 'answer', or a list 'answers'"
        return None

    def measure(self, answer: str, question: Question) -> dict[str, tuple[float, float]]:
        """What one answer adds to each figure, as part and whole: a figure is the sum of parts over that of wholes."""
        return {self.headline: (self.score(answer, question), 1)}

    def parts(self, answers: Sequence[str], questions: Sequence[Question]) -> dict[str, np.ndarray]:
        """Parts and wholes of one question or more, float64 `[questions, 2]`, by figure."""
        each = [self.measure(*pair) for pair in zip(answers, questions, strict=True)]
        return {name: np.array([one[name] for one in each], dtype=float) for name in each[0]}

    def tally(self, answers: Sequence[str], questions: Sequence[Question]) -> np.ndarray:
        """Parts and wholes, float64 `[questions, C, 2]`: the headline is `share` of their sum over the questions."""
        return self._columns(self.parts(answers, questions)[self.headline], questions)

    def figures(self, answers: Sequence[str], questions: Sequence[Question]) -> dict[str, float]:
        """The figures of one question or more in percent; those of a category end in `/category`."""
        found = {}
        for name, rows in self.parts(answers, questions).items():
            found[name] = float(share(self._columns(rows, questions).sum(axis=0)))
            for category, places in by_category(questions).items():
                found[f"{name}/{category}"] = float(share(rows[places].sum(axis=0, keepdims=True)))
        return found

    def _columns(self, rows: np.ndarray, questions: Sequence[Question]) -> np.ndarray:
        """Rows `[questions, 2]` as `[questions, C, 2]`, a column for each part whose shares are averaged."""
        columns = list(by_category(questions).values()) if self.averages_categories else []
        if rest := sorted(set(range(len(questions))).difference(*columns)):
            columns.append(rest)
        found = np.zeros((len(rows), len(columns), 2))
        for column, places in enumerate(columns):
            found[places, column] = rows[places]
        return found


class ExactMatch(Metric):
    """Case and the space around the text don't count; everything else does, as in the scripts for GQA and OCR-VQA."""

    name = "exact_match"

    def score(self, answer: str, question: Question) -> float:
        return answer.strip().lower() in {text.strip().lower() for text in question.expected}


class Mentions(Metric):
    """The first line of the answer holds one of the right texts, as whole words and numbers, in whatever case."""

    name = "mentions"

    def score(self, answer: str, question: Question) -> float:
        first = answer.strip().partition("\n")[0].lower()
        texts = "|".join(re.escape(text.strip().lower()) for text in question.expected if text.strip())
        return bool(re.search(rf"(?<![0-9a-z])(?<![0-9][.,])({texts})(?![0-9a-z]|[.,][0-9])", first))


class Anls(Metric):
    """The similarity to the nearest right answer, 0 below a half; case and runs of white space don't count.

    A similarity of exactly 0.5 counts, as in the challenge's own script; the paper's formula would make it 0.
    """

    name = headline = "anls"

    def score(self, answer: str, question: Question) -> float:
        from rapidfuzz.distance import Levenshtein

        given, *known = (" ".join(text.lower().split()) for text in (answer, *question.expected))
        similarity = max(Levenshtein.normalized_similarity(given, text) for text in known)
        return similarity if similarity >= THRESHOLD else 0.0


class RelaxedAccuracy(Metric):
    """Numbers may be off by 5 percent, texts may not.

    A number with a percent sign is a hundredth of it, as in the published scripts: "5%" is 0.05, so it matches "0.05"
    and not "5". Where the right answer is 0 or no number, the texts are compared, without case.
    """

    name = headline = "relaxed_accuracy"

    def score(self, answer: str, question: Question) -> float:
        return any(self._is_close(answer.strip(), text.strip()) for text in question.expected)

    @staticmethod
    def _is_close(given: str, expected: str) -> bool:
        wanted, number = finite(expected), finite(given)
        if wanted and number is not None:
            return abs(number - wanted) <= TOLERANCE * abs(wanted)
        return given.lower() == expected.lower()


def finite(text: str) -> float | None:
    """A number, a percentage as its hundredth; None for what is none ("nan" and "inf" are words here)."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


ARTICLES = ("a", "an", "the")
NUMBERS = {word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())}
NUMBERS["none"] = "0"
PUNCTUATION = """;/[]"{}()=+\\_-><@`!"""
# The contractions of the official evaluation. A word that lacks one of its apostrophes is given it back.
CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've "
    "we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's "
    "who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've "
    "you'll you're you've"
).split()
COMPLETED = {word[: at.start()] + word[at.end() :]: word for word in CONTRACTIONS for at in re.finditer("'", word)}
COMPLETED["somebody'd"] = "somebodyd"  # the official table has this one the other way round


class VqaAccuracy(Metric):
    """An answer is right if three of the other annotators gave it, and a third for each otherwise.

    Each of the ten annotators is left out once, and the ten results are averaged. Answers are normalized always, as
    EvalAI does it for TextVQA; the script of VQAv2 does it only where annotators disagree.
    """

    name = headline = "vqa_accuracy"

    def problem(self, question: Question) -> tuple[str, str] | None:
        if question.expected and len(question.expected) != NUM_ANNOTATORS:
            problem = f"{len(question.expected)} answers; VQA accuracy is defined by {NUM_ANNOTATORS} annotators"
            return problem, "give ten (repeat what several said), or take another metric, such as exact_match"
        return super().problem(question)

    def score(self, answer: str, question: Question) -> float:
        given, said = normalize(answer), [normalize(text) for text in question.expected]
        agreeing = said.count(given)
        return sum(min(1.0, (agreeing - (text == given)) / AGREEMENT) for text in said) / len(said)


@lru_cache(maxsize=100_000)
def normalize(text: str) -> str:
    """Without case, punctuation and articles; numbers up to ten as digits, contractions with their apostrophe."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.strip().replace("\n", " ").replace("\t", " ").strip()
    # A mark becomes nothing if it stands beside a space somewhere in the text, otherwise a space.
    marks = {ord(mark): "" if f"{mark} " in text or f" {mark}" in text else " " for mark in PUNCTUATION}
    text = re.sub(r"\.(?!\d)", "", text.translate(marks))
    words = [NUMBERS.get(word, word) for word in text.split()]
    return " ".join(COMPLETED.get(word, word) for word in words if word not in ARTICLES)


def chosen_letter(answer: str, choices: Mapping[str, str]) -> str | None:
    """The choice that an answer means, None where it can't be told, by VLMEvalKit's rules without a judge.

    1. Exactly one of the letters is a word of its own among the answer's last four: that one.
    2. No letter is, and the answer says "Z": none.
    3. The answer isn't much longer than the choices, and contains the text of exactly one of them: that one.
    """
    words = answer.translate(str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))).split()
    letters = [letter for letter in choices if letter in words]
    if len(letters) == 1 and words.index(letters[0]) >= len(words) - 4:  # an earlier one is an article or a name
        return letters[0]
    if (not letters and "Z" in words) or len(answer) > 2 * sum(map(len, choices.values())):
        return None
    named = [letter for letter, text in choices.items() if text.lower() in answer.lower()]
    return named[0] if len(named) == 1 else None


class MultipleChoice(Metric):
    """Right is the letter of the right choice; of questions with one `group` (rotations), all or none are right.

    Figures: `accuracy`, and where there are groups `accuracy_single`, the share of right answers without regard to
    them; `unclear` is the share of answers that name no choice.
    """

    name = "multiple_choice"

    def score(self, answer: str, question: Question) -> float:
        return chosen_letter(answer, question.facts["choices"]) == question.expected[0]

    def problem(self, question: Question) -> tuple[str, str] | None:
        if not (choices := question.facts.get("choices")):
            return "no choices", 'give them: "choices": {"A": ..., "B": ...} or a list'
        if len(question.expected) != 1 or question.expected[0] not in choices:
            return f"the answer {list(question.expected)} is none of the letters {', '.join(choices)}", "correct it"
        return None

    def measure(self, answer: str, question: Question) -> dict[str, tuple[float, float]]:
        unclear = chosen_letter(answer, question.facts["choices"]) is None
        return {**super().measure(answer, question), "unclear": (unclear, 1)}

    def parts(self, answers: Sequence[str], questions: Sequence[Question]) -> dict[str, np.ndarray]:
        """The parts of a group stand at its first question."""
        found, groups = super().parts(answers, questions), by_group(questions)
        if len(groups) < len(questions):
            single = found["accuracy_single"] = found["accuracy"]
            found["accuracy"] = np.zeros_like(single)
            for group in groups:
                found["accuracy"][group[0]] = single[group].min(axis=0)
        return found


def says_no(answer: str) -> bool:
    """Whether the first sentence contains "no" or "not"; by POPE's own script, everything else says yes."""
    return not {"No", "no", "not"}.isdisjoint(answer.split(".")[0].replace(",", "").split())


_YES_OR_NO = re.compile(r"(?<![^\s,.])(yes|no|not)(?![^\s,.])", re.IGNORECASE)


class YesNo(Metric):
    """F1 of "yes", accuracy, precision, recall and the share of "yes", averaged over random, popular and adversarial.

    POPE takes an answer that says neither for "yes"; `unclear` is the share of answers without any such word.
    """

    name, headline, averages_categories = "yes_no", "f1", True

    def score(self, answer: str, question: Question) -> float:
        return says_no(answer) == (question.expected[0].strip().lower() == "no")

    def problem(self, question: Question) -> tuple[str, str] | None:
        if len(question.expected) != 1 or question.expected[0].strip().lower() not in ("yes", "no"):
            return f"the right answer {list(question.expected)} is neither yes nor no", "correct it"
        return None

    def measure(self, answer: str, question: Question) -> dict[str, tuple[float, float]]:
        yes, is_yes = not says_no(answer), question.expected[0].strip().lower() == "yes"
        hit = yes and is_yes
        return {
            "f1": (2 * hit, yes + is_yes),
            "accuracy": (yes == is_yes, 1),
            "precision": (hit, yes),
            "recall": (hit, is_yes),
            "yes_ratio": (yes, 1),
            "unclear": (not _YES_OR_NO.search(answer), 1),
        }


_NUMBER = r"(-?(?:\d+(?:\.\d*)?|\.\d+))"
_CORNERS = re.compile(rf"[\[(]\s*{_NUMBER}[\s,]+{_NUMBER}[\s,()\[\]]+{_NUMBER}[\s,]+{_NUMBER}\s*[\])]")


def find_box(text: str) -> tuple[float, ...] | None:
    """The first box of a text, as (x1, y1, x2, y2) in fractions of the image; None where there is none.

    Args:
        text: `<box>[[x1, y1, x2, y2]]</box>`, `[x1, y1, x2, y2]` or `(x1,y1),(x2,y2)`, from 0 to 1000; without `<box>`
            and with a sum below 4 in fractions, as in InternVL's script.
    """
    tagged = BOX.search(text)
    found = _CORNERS.search(tagged[1] if tagged else text)
    box = tuple(map(float, found.groups())) if found else (math.nan,)
    if not all(map(math.isfinite, box)):
        return None
    return box if not tagged and sum(box) < 4 else tuple(value / FRAME_SIZE for value in box)


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes; 0 where one of them has no area."""
    width, height = (max(0.0, min(a[end], b[end]) - max(a[end - 2], b[end - 2])) for end in (2, 3))
    areas = [max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height) if width * height and all(areas) else 0.0


class Iou(Metric):
    """The share of answers whose first box overlaps the right one by at least 0.5 (intersection over union).

    Figures: `accuracy`, `mean_iou`, and `unclear`, the share of answers without a box.
    """

    name = "iou"

    def score(self, answer: str, question: Question) -> float:
        return self._iou(answer, question) >= THRESHOLD - 1e-9  # fractions round; pixels may overlap by exactly a half

    def problem(self, question: Question) -> tuple[str, str] | None:
        if (problem := super().problem(question)) or self._iou(question.expected[0], question):
            return problem
        return f"the answer {question.expected[0][:60]!r} is no box with an area", "write [x1, y1, x2, y2], 0 to 1000"

    @staticmethod
    def _iou(answer: str, question: Question) -> float:
        given, right = find_box(answer), find_box(question.expected[0])
        return overlap(given, right) if given and right else 0.0

    def measure(self, answer: str, question: Question) -> dict[str, tuple[float, float]]:
        further = {"mean_iou": (self._iou(answer, question), 1), "unclear": (find_box(answer) is None, 1)}
        return super().measure(answer, question) | further


class Cer(Metric):
    """Edits of the characters of all answers divided by the length of all right texts.

    It is above 100 where much too much is said. Of several right texts the one with the lowest rate counts. Only space
    around a text is ignored. The score of one answer is 1 minus its rate, at least 0.
    """

    name = headline = "cer"
    higher_is_better = False

    def score(self, answer: str, question: Question) -> float:
        edits, length = self.measure(answer, question)["cer"]
        return max(0.0, 1 - edits / length)

    def measure(self, answer: str, question: Question) -> dict[str, tuple[float, float]]:
        """Edits, and the length of the right text."""
        from rapidfuzz.distance import Levenshtein

        texts = [text.strip() for text in question.expected if text.strip()]
        counts = [(Levenshtein.distance(text, answer.strip()), len(text)) for text in texts]
        return {"cer": min(counts, key=lambda count: count[0] / count[1])}


_KINDS = (ExactMatch, Mentions, VqaAccuracy, Anls, RelaxedAccuracy, MultipleChoice, YesNo, Iou, Cer)
METRICS: dict[str, Metric] = {kind.name: kind() for kind in _KINDS}


def find_metric(name: str) -> Metric:
    """The metric of a name.

    Raises:
        SettingError: There is none.
    """
    if name not in METRICS:
        raise SettingError("metric", f"metric {name!r} is unknown", f"the metrics are {', '.join(METRICS)}")
    return METRICS[name]
