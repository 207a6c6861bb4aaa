"""Of which rows a template with a share is made: by a hash of each row, in the training split."""

import hashlib
from pathlib import Path

import pytest
from pydantic import ValidationError

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.recipe import ExampleInput
from ft_pipeline_tests.examples.builds import Built, Record, build, make_qa, make_quiz

ALL = ("quiz_question", "quiz_set", "answer")
ROWS = make_quiz(400)


def build_mix(
    folder: Path, rows: list[Record], shares: dict[str, float], *templates: str, **more: object
) -> Built:
    given = {"shares": shares, "set_size": 2}
    return build(folder, rows, "trivia", templates or ALL, given, **more)


def list_rows(built: Built, task: str, side: str) -> set[str]:
    """The rows behind the examples of a template in a split."""
    return {
        row_id
        for example in built.examples
        if (example["task"], example["side"]) == (task, side)
        for row_id in example["source_rows"]
    }


def is_drawn(row_id: str, template: str, share: float, seed: int = 42) -> bool:
    """The rule, computed the plain way: the first eight bytes of an MD5, the last one first."""
    digest = hashlib.md5(f"{seed}:{template}:{row_id}".encode()).digest()
    return int.from_bytes(digest[8:], "little") < share * 2**64


def test_each_row_is_drawn_by_its_own_hash(tmp_path: Path) -> None:
    shares = {"quiz_question": 0.25, "answer": 0.5}
    built = build_mix(tmp_path, ROWS, shares)
    train = {row["row_id"] for row in built.rows if row["side"] == "train"}
    for template, share in shares.items():
        expected = {row_id for row_id in train if is_drawn(row_id, template, share)}
        assert list_rows(built, template, "train") == expected
        # About 200 training rows: standard deviations 3 and 3.5 points.
        assert len(expected) / len(train) == pytest.approx(share, abs=0.12)
    assert built.report["rows_rejected"] == 0  # sets have no share, so they take every row


def test_validation_rows_take_part_in_every_template(tmp_path: Path) -> None:
    shares = dict.fromkeys(ALL, 0.2)
    some, everything = (build_mix(tmp_path, ROWS, given) for given in (shares, {}))
    found, wanted = (
        [example for example in built.examples if example["side"] == "val"]
        for built in (some, everything)
    )
    assert found == wanted != []


def test_a_row_that_no_template_draws_is_left_out(tmp_path: Path) -> None:
    shares = {"quiz_question": 0.3, "answer": 0.3}
    built = build_mix(tmp_path, ROWS, shares, "quiz_question", "answer")
    used = {row["row_id"] for row in built.rows if row["side"] == "train"}
    assert list_rows(built, "quiz_question", "train") | list_rows(built, "answer", "train") == used
    assert {row["reason"] for row in built.rejected} == {"not_sampled"}
    assert len(used) + len(built.rejected) == 400 - built.report["questions_by_split"]["val"]
    assert not any(is_drawn(row["row_id"], t, 0.3) for row in built.rejected for t in shares)


def test_a_row_that_only_a_set_draws_is_in_one_or_left_out(tmp_path: Path) -> None:
    # Two rows a category: often only one of them is drawn, and then alone.
    rows = [row for n in range(200) for row in make_quiz(2, 2 * n, f"Street {n}")]
    built = build_mix(tmp_path, rows, {"quiz_set": 0.5, "answer": 0.2}, "quiz_set", "answer")
    used = {row["row_id"] for row in built.rows if row["side"] == "train"}
    assert list_rows(built, "quiz_set", "train") | list_rows(built, "answer", "train") == used
    alone = [row for row in built.rejected if row["reason"] == "too_few_for_a_set"]
    assert alone
    for row in (row["row_id"] for row in alone):
        assert not is_drawn(row, "answer", 0.2)
    assert built.report["rows_used"] + built.report["rows_rejected"] == 400


def test_new_rows_leave_what_was_drawn(tmp_path: Path) -> None:
    shares = {"quiz_question": 0.4, "answer": 0.4}
    before, after = (build_mix(tmp_path, ROWS[:n], shares, *shares) for n in (380, 400))
    old, new = ({e["example_id"] for e in built.examples} for built in (before, after))
    assert old < new


def test_a_larger_share_takes_what_a_smaller_one_took(tmp_path: Path) -> None:
    small, large = (
        list_rows(build_mix(tmp_path, ROWS, {"answer": share}), "answer", "train")
        for share in (0.2, 0.6)
    )
    assert small < large


def test_templates_draw_apart_and_by_the_sampling_seed(tmp_path: Path) -> None:
    shares = {"quiz_question": 0.5, "answer": 0.5}
    one, other = (build_mix(tmp_path, ROWS, shares, sampling_seed=seed) for seed in (42, 7))
    questions, answers = (list_rows(one, name, "train") for name in shares)
    # Of half the rows another draw takes half.
    assert len(questions & answers) / len(questions) == pytest.approx(0.5, abs=0.2)
    assert list_rows(other, "answer", "train") != answers


def test_a_whole_share_changes_nothing(tmp_path: Path) -> None:
    whole, without = (build_mix(tmp_path, ROWS[:60], given) for given in ({"answer": 1}, {}))
    assert whole.content == without.content


def test_a_share_of_a_drawn_split_is_of_its_training_rows(tmp_path: Path) -> None:
    split = {"method": "random", "validation_fraction": 0.25}
    built = build(tmp_path, make_qa(400), given={"shares": {"answer": 0.1}}, split=split)
    sides = [row["side"] for row in built.rows]
    assert sides.count("val") == 100  # a quarter of 400, all of it
    # A tenth of 300: standard deviation 5.2.
    assert 12 <= sides.count("train") <= 48


def test_shares_that_leave_no_training_row_are_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"training split is empty.*`shares` of the inputs"):
        build(tmp_path, make_qa(20), given={"shares": {"answer": 1e-9}})


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"answer": 0}, "greater than 0"),
        ({"answer": -0.5}, "greater than 0"),
        ({"answer": 1.5}, "less than or equal to 1"),
        ({"answer": "much"}, "valid number"),
        (
            {"awnser": 0.5},
            "shares.awnser: not a template of this input. Its templates: quiz_question, answer. "
            "Did you mean `answer`?",
        ),
        ({"quiz_set": 0.5}, "shares.quiz_set: not a template of this input"),
    ],
)
def test_a_share_that_cannot_be_is_refused(shares: Record, message: str) -> None:
    given = {"source": "s", "parser": "trivia", "templates": ["quiz_question", "answer"]}
    with pytest.raises(ValidationError) as caught:
        ExampleInput.model_validate({**given, "shares": shares})
    assert message in str(caught.value)
