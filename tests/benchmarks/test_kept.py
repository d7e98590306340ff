"""Answers that are kept: asked for again only where something they came of is another."""

import pytest

from benchmarks.static import kept


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """answer() in a repository of two files; asked for counts the questions."""
    monkeypatch.setattr(kept, "ROOT", tmp_path)
    monkeypatch.setattr(kept, "PLACE", tmp_path / "build")
    (tmp_path / "a.cu").write_text("one")
    (tmp_path / "b.h").write_text("two")

    def ask(*texts, patterns=("a.cu", "*.h")):
        ask.count += 1
        return kept.answer(lambda: {"answer": ask.count}, patterns, *texts)["answer"]

    ask.count = 0
    return ask


def test_nothing_changed(ask):
    assert ask("-O3", 90) == ask("-O3", 90) == 1


def test_other_texts(ask):
    assert [ask("-O3"), ask("-O2"), ask("-O3"), ask("-", "O3")] == [1, 2, 1, 4]


@pytest.mark.parametrize("name", ["a.cu", "b.h", "new.h"])
def test_another_file_of_the_patterns(ask, tmp_path, name):
    ask()
    (tmp_path / name).write_text("changed")
    assert ask() == 2


def test_a_file_of_no_pattern(ask, tmp_path):
    ask()
    (tmp_path / "c.py").write_text("changed")
    assert ask() == 1


def test_no_answer_is_not_kept(ask, tmp_path):
    def fail():
        raise ValueError("does not compile")

    with pytest.raises(ValueError, match="does not compile"):
        kept.answer(fail, ("a.cu",))
    assert not (tmp_path / "build").exists()
