"""Where gin files and data are looked for."""

import pytest

from t5x_style.config import paths


@pytest.fixture
def working_folder(tmp_path, monkeypatch):
    folder = tmp_path / "work"
    (folder / "gin" / "recipes").mkdir(parents=True)
    (folder / "data" / "words").mkdir(parents=True)
    (folder / "gin" / "recipes" / "mine_only.gin").write_text("A = 1\n")
    (folder / "data" / "words" / "mine.txt").write_text("word\n")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", ["recipes/mine_only.gin", "gin/recipes/mine_only.gin"])
def test_a_recipe_is_found_with_or_without_gin_before_it(working_folder, name):
    assert paths.find_gin(name) == working_folder / "gin" / "recipes" / "mine_only.gin"


def test_absolute_paths_and_home_are_taken_as_they_are(working_folder, monkeypatch):
    path = working_folder / "gin" / "recipes" / "mine_only.gin"
    assert paths.find_gin(path) == path
    monkeypatch.setenv("HOME", str(working_folder))
    assert paths.find_gin("~/gin/recipes/mine_only.gin") == path


def test_the_order_is_search_path_working_folder_checkout_installed_copy(
    working_folder, tmp_path, monkeypatch
):
    package = tmp_path / "site" / "t5x_style"
    places = [
        tmp_path / "extra",
        working_folder / "gin",
        tmp_path / "site" / "gin",
        package / "_shipped" / "gin",
    ]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        (place / "a.gin").write_text("A = 1\n")
    (tmp_path / "site" / "setup.py").touch()
    monkeypatch.setattr(paths, "_PACKAGE", package)
    monkeypatch.setattr(paths, "_INSTALLED", package / "_shipped")
    for place in places:
        assert paths.find_gin("a.gin", [tmp_path / "extra"]) == place / "a.gin"
        (place / "a.gin").unlink()
    with pytest.raises(ValueError, match="no such file"):
        paths.find_gin("a.gin", [tmp_path / "extra"])


def test_a_wrong_path_lists_the_places_and_close_matches(working_folder):
    with pytest.raises(ValueError, match="no such file") as caught:
        paths.find_gin("recipe/mine_onyl.gin")
    text = str(caught.value)
    assert str(working_folder / "gin" / "recipe" / "mine_onyl.gin") in text
    assert "close matches:\n    gin/recipes/mine_only.gin" in text


def test_a_folder_given_for_a_file_lists_what_is_in_it(working_folder):
    with pytest.raises(ValueError, match="is a folder") as caught:
        paths.find_gin("recipes")
    assert "gin/recipes/mine_only.gin" in str(caught.value)


def test_data_files_and_folders_are_found(working_folder):
    assert paths.find_data("words/mine.txt") == working_folder / "data" / "words" / "mine.txt"
    assert paths.find_data("words") == working_folder / "data" / "words"
    with pytest.raises(ValueError, match="no such file"):
        paths.find_data("words/theirs.txt")


def test_paths_are_shown_as_a_person_would_type_them(working_folder, tmp_path):
    assert paths.shown(working_folder / "gin" / "x.gin") == "gin/x.gin"
    assert paths.shown(tmp_path / "x.gin") == str(tmp_path / "x.gin")
