"""A study goes on after a stop, and ends with files and a sentence."""

import json

import pytest

from sparse_detr.errors import UserError
from sparse_detr.studies.driver import Conclusion, Study, grouped, mean_of, run_study, spread_of

AGREES = Conclusion(True, "more is better (rule: 2 above 1)", "it is")


def study_of(done, *, settings=None, fail=(), made_from=None):
    """Return a study of two parts that writes into `done` which parts ran."""

    def part(name, value):
        if name in fail:
            raise UserError(f"{name} failed")
        done.append(name)
        return {"name": name, "AP": value}

    return Study(
        name="toy",
        parts={"one": lambda: part("one", 1.0), "two": lambda: part("two", 2.0)},
        settings=settings or {"iterations": 3, "size": (1, 2)},
        table=lambda results: (["", "AP"], [[name, f"{result['AP']:.1f}"] for name, result in results.items()]),
        draw=lambda results, path: path.write_bytes(b"picture"),
        conclude=lambda results: AGREES,
        made_from=made_from or {},
    )


def test_it_writes_numbers_a_table_with_the_picture_and_the_sentence(tmp_path, capsys):
    assert run_study(study_of([]), tmp_path / "out").agrees
    text = (tmp_path / "out" / "toy.md").read_text()
    assert "| one | 1.0 |\n| two | 2.0 |\n\n![toy](toy.png)\n" in text
    assert text.endswith("Agrees with the paper: more is better (rule: 2 above 1); here it is.\n")
    record = json.loads((tmp_path / "out" / "toy.json").read_text())
    assert record["results"]["two"] == {"name": "two", "AP": 2.0}
    assert record["agrees"] is True
    assert text in capsys.readouterr().out


def test_finished_parts_are_not_run_again(tmp_path, capsys):
    done = []
    with pytest.raises(UserError, match="two failed"):
        run_study(study_of(done, fail=["two"]), tmp_path)
    run_study(study_of(done), tmp_path)
    assert done == ["one", "two"]
    assert "1 of 2 parts are done already" in capsys.readouterr().out


def test_the_time_to_go_comes_from_the_parts_that_ran(tmp_path, capsys):
    run_study(study_of([]), tmp_path)
    output = capsys.readouterr().out
    assert "part 1 of 2: one\n" in output
    assert "part 2 of 2: two (about 0:00:00 to go)" in output


def test_numbers_that_were_made_with_other_settings_are_refused(tmp_path):
    run_study(study_of([]), tmp_path)
    with pytest.raises(UserError, match=r"made with other settings \(iterations\)"):
        run_study(study_of([], settings={"iterations": 4, "size": (1, 2)}), tmp_path)


def test_numbers_of_a_part_that_were_made_from_other_files_are_refused(tmp_path):
    files = {"one": {"weights": "1a", "data": {"val": "2b"}}, "two": {"weights": "3c"}}
    with pytest.raises(UserError, match="two failed"):
        run_study(study_of([], made_from=files, fail=["two"]), tmp_path)
    run_study(study_of([], made_from=files | {"two": {"weights": "4d"}}), tmp_path)  # was not measured before
    run_study(study_of([], made_from=files | {"two": {"weights": "4d"}}), tmp_path)
    before = (tmp_path / "toy.json").read_text()
    with pytest.raises(
        UserError, match=r"the numbers of 'two', but they were made from other files \(weights\); remove"
    ):
        run_study(study_of([], made_from=files), tmp_path)
    assert (tmp_path / "toy.json").read_text() == before


def test_numbers_of_an_older_version_which_noted_no_files_are_refused(tmp_path):
    run_study(study_of([]), tmp_path)
    with pytest.raises(UserError, match=r"'one', .* \(weights, which was not noted then\)"):
        run_study(study_of([], made_from={"one": {"weights": "1a"}}), tmp_path)


@pytest.mark.parametrize("text", ["no json", "[]", "{}", '{"results": {}}'])
def test_a_file_that_is_no_record_is_named(tmp_path, text):
    (tmp_path / "toy.json").write_text(text)
    with pytest.raises(UserError, match=r"toy\.json is no record of a study"):
        run_study(study_of([]), tmp_path)


@pytest.mark.parametrize(
    ("agrees", "start"), [(True, "Agrees"), (False, "Does not agree"), (None, "Cannot tell")], ids=str
)
def test_the_sentence_says_whether_it_agrees_and_why_it_may_be_wrong(agrees, start):
    sentence = Conclusion(agrees, "a rule", "2", ["1 seed", "10 images"]).sentence
    assert sentence.startswith(start)
    assert sentence.endswith("a rule; here 2. Caution: 1 seed. Caution: 10 images.")


def test_seeds_are_grouped_and_averaged():
    results = {"a": {"rho": 0.1, "AP": 1.0}, "b": {"rho": 0.1, "AP": 3.0}, "c": {"rho": 0.3, "AP": 5.0}}
    groups = grouped(results, ("rho",))
    assert mean_of(groups[0.1,], "AP") == 2.0
    assert spread_of(groups[0.1,], "AP") == pytest.approx(2**0.5)
    assert spread_of(groups[0.3,], "AP") == 0.0
