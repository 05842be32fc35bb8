"""Many questions: batched answers equal single ones, one bad image takes out its question."""

from dataclasses import replace

import pytest
from PIL import Image

from xtuner_plugins.inference.batch_answers import Job, answer_all, plan_batches
from xtuner_plugins.inference.opening import open_session
from xtuner_plugins.inference.questions import Question

SIZES = {"a.png": (112, 112), "b.png": (336, 224), "c.png": (224, 112), "d.png": (336, 224)}
SHORT = {"max_new_tokens": 4}


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, size in SIZES.items():
        Image.effect_noise(size, 80).convert("RGB").save(folder / name)
    (folder / "text.png").write_text("not an image")
    (folder / "cut.png").write_bytes((folder / "b.png").read_bytes()[:5000])
    names = ["a.png", "text.png", "b.png", "cut.png", "c.png", "d.png"]
    *asked, other = [Question(name, "What is it?", (name,), (str(folder / name),)) for name in names]
    asked += [Question("text", "Hello"), Question("marks", "Two <image> <image>", ("a.png",), asked[0].paths)]
    return asked, other


@pytest.fixture(scope="module")
def session(toy_base):
    return open_session(toy_base, device="cpu")


def test_batched_answers_equal_single_ones_and_bad_images_are_named(toy_base, questions, session):
    asked = [*questions[0], Question("long", "word " * 5000)]
    job = Job(str(toy_base), opening={"device": "cpu"}, generation=SHORT, batch_size=4)
    found = list(answer_all(job, asked, session.lengths))
    answers = {question.id: answer for question, answer in found}
    assert len(answers) == len(found) == len(asked)
    for name, said in (
        ("text.png", "text.png"),
        ("cut.png", "cut.png"),
        ("marks", "question marks: the question has 2 <image> for 1 images"),
        ("long", "tokens, but the model knows 4,096 positions; lower"),
    ):
        assert said in answers.pop(name).message
    left = [each for each in asked if each.id in answers]
    assert answers == {each.id: session.answers([(each.text, each.paths)], **SHORT)[0] for each in left}


def test_the_longest_come_first_and_those_about_an_image_together(questions, session):
    asked, other = questions
    batches, unusable = plan_batches(asked, session.lengths, 2)
    named = [[question.id for question in batch] for batch in batches]
    assert named == [["b.png", "cut.png"], ["c.png", "marks"], ["a.png", "text"]]
    assert [question.id for question, _ in unusable] == ["text.png"]
    limited = replace(session.lengths, tiling=session.lengths.tiling.limited(2))
    two = Question("two", "", paths=asked[2].paths * 2)  # images of one tile each
    assert limited.planned(two) == 2 * limited.tokens_per_tile and limited.planned(Question("", "x" * 30)) == 10
    texts = ("Why?", "Who is that?")
    mixed = [replace(each, id=f"{each.id} {text}", text=text) for text in texts for each in (asked[2], other)]
    ((batch,), _) = plan_batches(mixed, session.lengths, 4)
    assert [each.id for each in batch] == ["b.png Who is that?", "b.png Why?", "d.png Who is that?", "d.png Why?"]
