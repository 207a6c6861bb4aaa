"""Which rows are dropped as near-duplicates, contaminated or not sampled, and which are kept."""

import random
from itertools import product
from pathlib import Path

import pytest
from pydantic import ValidationError

from ft_pipeline.config.recipe import NearDuplicates
from ft_pipeline.examples.render.build import RawSource
from ft_pipeline_tests.examples.builds import (
    QUIZ,
    Built,
    Record,
    build,
    build_from,
    compute_jaccard,
    make_qa,
    make_quiz,
    make_text,
    to_jsonl,
    write_source,
)


def make_near_rows(seed: int, count: int = 40) -> list[Record]:
    """Questions of 6 to 30 words, each followed by three with one more word changed."""
    rng, rows = random.Random(seed), list[Record]()
    for n in range(count):
        words = make_text(rng, rng.randrange(6, 31))
        for _ in range(4):
            rows.append({"question": " ".join(words), "answer": f"Answer {n}"})
            # Near an end a word is in one or two shingles, elsewhere in three.
            place = rng.choice([0, -1, -1, -2, rng.randrange(len(words))])
            words[place] = f"new{rng.randrange(5000)}"
    return rows


NEAR = make_near_rows(1)


def list_leaks(built: Built, threshold: float) -> list[tuple[str, str]]:
    """Compare all used questions of the two splits, the plain way."""
    sides: dict[str, list[str]] = {"train": [], "val": []}
    for example in built.examples:
        sides[example["side"]].append(example["prompt"])
    assert all(sides.values())
    return [(a, b) for a, b in product(*sides.values()) if compute_jaccard(a, b) >= threshold]


@pytest.mark.parametrize("keep", ["one", "all"])
@pytest.mark.parametrize("threshold", [0.5, 0.8])
@pytest.mark.parametrize("method", ["hash", "random"])
def test_no_training_question_is_near_one_of_the_validation_split(
    tmp_path: Path, keep: str, threshold: float, method: str
) -> None:
    near = {"keep": keep, "threshold": threshold}
    split = {"method": method, "validation_fraction": 0.3}
    built = build(tmp_path, NEAR, near_duplicates=near, split=split)
    assert list_leaks(built, threshold) == []
    assert built.report["rows_rejected"] > 20


def test_without_a_threshold_near_duplicates_stay(tmp_path: Path) -> None:
    built = build(tmp_path, NEAR, near_duplicates={"threshold": None})
    assert built.report["rows_rejected"] == 0
    assert list_leaks(built, 0.8) != []


def test_of_near_duplicates_the_smallest_row_id_is_kept(tmp_path: Path) -> None:
    built = build(tmp_path, NEAR)
    everything = build(tmp_path / "all", NEAR, near_duplicates={"threshold": None})
    questions = {e["source_rows"][0]: e["prompt"] for e in everything.examples}
    used = {row["row_id"] for row in built.rows}
    for row in built.rejected:
        assert row["reason"] == "near_duplicate"
        assert row["repeats"] in used
        assert row["repeats"] < row["row_id"]
    pairs = [(questions[row["row_id"]], questions[row["repeats"]]) for row in built.rejected]
    near = [compute_jaccard(one, other) for one, other in pairs]
    # Of a chain of three the ends may be further apart than the threshold.
    assert sum(similarity >= 0.8 for similarity in near) > 0.7 * len(near)
    kept = [questions[row_id] for row_id in used]
    assert not any(compute_jaccard(a, b) >= 0.8 for a, b in product(kept, kept) if a != b)


def write_two(folder: Path, one: list[Record], other: list[Record]) -> dict[str, RawSource]:
    return {
        name: write_source(folder / name, {f"{name}.jsonl": to_jsonl(rows)})
        for name, rows in (("one", one), ("other", other))
    }


def make_inputs(*names: str, **more: Record) -> list[Record]:
    return [
        {"source": name, "parser": "qa", "templates": ["answer"], **more.get(name, {})}
        for name in names
    ]


@pytest.mark.parametrize("first", ["one", "other"])
def test_of_near_duplicates_the_first_named_source_keeps_its_row(
    tmp_path: Path, first: str
) -> None:
    rows = make_qa(30)
    upper = [{**row, "question": row["question"].upper()} for row in rows]
    sources = write_two(tmp_path, rows, upper)
    (second,) = {"one", "other"} - {first}
    built = build_from(tmp_path, sources, make_inputs(first, second))
    assert {row["source"] for row in built.rows} == {first}
    assert {(row["source"], row["reason"]) for row in built.rejected} == {
        (second, "near_duplicate")
    }
    assert len(built.rejected) == 30


def test_a_contaminated_row_names_the_validation_row_that_it_is_near(tmp_path: Path) -> None:
    built = build(tmp_path, NEAR, near_duplicates={"keep": "all"})
    sides = {row["row_id"]: row["side"] for row in built.rows}
    assert {row["reason"] for row in built.rejected} == {"contaminated"}
    assert {sides[row["repeats"]] for row in built.rejected} == {"val"}


@pytest.mark.parametrize(
    "questions",
    [
        ("What is C?", "What is C++?", "What is C#?"),
        ("How much is 12 + 1?", "How much is 1 + 21?", "How much is 1.2 - 1?"),
        ("क्या यह दाल है?", "क्या यह दिल है?", "क्या यह दूल है?"),
    ],
)
def test_other_questions_of_the_same_letters_are_kept(
    tmp_path: Path, questions: tuple[str, ...]
) -> None:
    rows = [{"question": question, "answer": f"{n}"} for n, question in enumerate(questions)]
    built = build(tmp_path, [*make_qa(12), *rows], near_duplicates={"threshold": 1.0})
    assert built.report["rows_rejected"] == 0


def test_chats_that_end_alike_are_kept(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["answer"]},
                {"role": "user", "content": "Please go on." if n < 6 else f"Why house{n}?"},
                {"role": "assistant", "content": f"Then {row['answer']} moved."},
            ]
        }
        for n, row in enumerate(make_qa(24))
    ]
    built = build(tmp_path, rows, "messages", ["chat"])
    assert built.report["rows_rejected"] == 0


# ---- Held-out files


def write_test_file(folder: Path, questions: list[str], name: str = "test.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(to_jsonl({"question": q} for q in questions), "utf-8")
    return folder / name


@pytest.mark.parametrize("keep", ["one", "all"])
def test_no_question_is_near_one_of_a_held_out_file(tmp_path: Path, keep: str) -> None:
    questions = [row["question"] for row in NEAR[::9]]
    file = write_test_file(tmp_path, questions)
    built = build(
        tmp_path,
        NEAR,
        held_out={"test": file},
        near_duplicates={"keep": keep},
        split={"validation_fraction": 0.3},
    )
    used = [row["question"] for row in built.rows if row["side"] == "train"]
    assert not any(compute_jaccard(a, b) >= 0.8 for a, b in product(used, questions))
    dropped = [row for row in built.rejected if row["repeats"] == "test"]
    assert len(dropped) >= len(questions)
    assert {row["reason"] for row in dropped} == {"contaminated"}


def test_each_held_out_file_is_named(tmp_path: Path) -> None:
    rows = make_qa(30)
    files = {
        "a": write_test_file(tmp_path, [rows[3]["question"].upper()], "a.jsonl"),
        "b": write_test_file(tmp_path, [rows[3]["question"], rows[4]["question"]], "b.jsonl"),
    }
    built = build(tmp_path, rows, held_out=files)
    assert {row["line"]: row["repeats"] for row in built.rejected} == {4: "a", 5: "b"}


def test_an_empty_held_out_question_drops_nothing(tmp_path: Path) -> None:
    file = write_test_file(tmp_path, ["", "Something else altogether it is?"])
    assert build(tmp_path, make_qa(20), held_out={"t": file}).report["rows_rejected"] == 0


# ---- Limits and weights


def list_lines(built: Built) -> list[int]:
    return sorted(row["line"] for row in built.rows)


def test_a_limit_samples_from_the_whole_source(tmp_path: Path) -> None:
    built = build(tmp_path, make_qa(400), given={"limit": 100})
    lines = list_lines(built)
    assert len(lines) == 100
    assert built.report["rejected_by_reason"] == {"not_sampled": 300}
    # Rows of the first half: 50 of 100 on average, standard deviation 4.3 without replacement.
    assert 32 <= sum(line <= 200 for line in lines) <= 68


def test_a_limit_is_drawn_by_its_seed(tmp_path: Path) -> None:
    rows = make_qa(100)
    one, same, other = (
        list_lines(build(tmp_path, rows, given={"limit": 30}, sampling_seed=seed))
        for seed in (1, 1, 2)
    )
    assert one == same != other


def test_a_limit_above_the_number_of_rows_keeps_all(tmp_path: Path) -> None:
    assert build(tmp_path, make_qa(20), given={"limit": 20}).report["rows_used"] == 20


def test_a_larger_limit_adds_rows(tmp_path: Path) -> None:
    small, large = (
        set(list_lines(build(tmp_path, make_qa(100), given={"limit": n}))) for n in (30, 60)
    )
    assert small < large


def test_a_limit_leaves_the_splits_as_they_are(tmp_path: Path) -> None:
    sides = {row["row_id"]: row["side"] for row in build(tmp_path, make_qa(60)).rows}
    some = build(tmp_path, make_qa(60), given={"limit": 30}).rows
    assert all(sides[row["row_id"]] == row["side"] for row in some)


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ((1, 1), (40, 40)),
        ((3, 1), (120, 40)),
        ((1, 3), (13, 40)),  # 40 / 3 = 13.3
        ((0.75, 0.25), (120, 40)),
        ((10, 1), (200, 20)),
    ],
)
def test_weights_give_the_shares_of_the_sources(
    tmp_path: Path, weights: tuple[float, float], counts: tuple[int, int]
) -> None:
    sources = write_two(tmp_path, make_qa(200), make_qa(40, start=1000))
    inputs = make_inputs("one", "other", one={"weight": weights[0]}, other={"weight": weights[1]})
    built = build_from(tmp_path, sources, inputs)
    used = [row["source"] for row in built.rows]
    assert (used.count("one"), used.count("other")) == counts


def test_a_source_without_a_weight_keeps_its_rows(tmp_path: Path) -> None:
    sources = write_two(tmp_path, make_qa(50), make_qa(40, start=1000))
    built = build_from(tmp_path, sources, make_inputs("one", "other", one={"weight": 2}))
    assert built.report["rows_used"] == 90


# ---- The row cache


@pytest.mark.parametrize("keep", ["one", "all"])
def test_a_build_with_a_row_cache_gives_what_it_gives_without(tmp_path: Path, keep: str) -> None:
    recipe = {"near_duplicates": {"keep": keep}}
    cache = tmp_path / "rows"
    build(tmp_path, NEAR[2:], row_cache=cache, **recipe)
    plain = build(tmp_path, NEAR, **recipe)
    cached = build(tmp_path, NEAR, row_cache=cache, **recipe)
    assert cached.content == plain.content
    assert cached.rejected == plain.rejected
    assert len(list(cache.rglob("questions.arrow"))) == 2


def test_a_corrected_question_is_compared_by_its_new_words(tmp_path: Path) -> None:
    words = [f"word{n}" for n in range(12)]
    joined, right, near = ("".join(words), " ".join(words), " ".join([*words, "indeed"]))
    cache = tmp_path / "rows"
    before = [*make_qa(12), {"question": joined, "answer": "x"}]
    build(tmp_path, before, row_cache=cache)
    after = [*make_qa(12), *({"question": q, "answer": "x"} for q in (right, near))]
    plain = build(tmp_path, after)
    assert plain.report["rejected_by_reason"] == {"near_duplicate": 1}
    assert build(tmp_path, after, row_cache=cache).rejected == plain.rejected


def test_a_question_is_compared_by_its_own_words(tmp_path: Path) -> None:
    rows = make_qa(9)
    for n in range(30):  # so many that on some pair one side holds each of the two
        words = [f"word{n}x{i}" for i in range(12)]
        near = " ".join([*words, "indeed"])
        rows += [{"question": q, "answer": "x"} for q in ("".join(words), " ".join(words), near)]
    for n in range(8):  # of two questions with the same letters either may be the one compared
        built = build(tmp_path, rows, near_duplicates={"keep": "all"}, split={"seed": n})
        assert list_leaks(built, 0.8) == []


def test_growth_moves_no_other_question(tmp_path: Path) -> None:
    rows = [*make_quiz(60), *make_quiz(40, start=60, category="Yards")]
    before = build(tmp_path, rows[:97], "trivia", QUIZ)
    after = build(tmp_path, rows, "trivia", QUIZ)
    old, new = ({r["row_id"]: r["side"] for r in built.rows} for built in (before, after))
    assert {row_id: new[row_id] for row_id in old} == old


@pytest.mark.parametrize("threshold", [0, 0.29, 1.01])
def test_a_threshold_at_which_pairs_would_be_missed_is_refused(threshold: float) -> None:
    with pytest.raises(ValidationError):
        NearDuplicates(threshold=threshold)
