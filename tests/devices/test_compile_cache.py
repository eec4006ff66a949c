"""Compiled programs on disk: where they go, who can write there, and how many stay."""

import os
import zlib

import jax
import pytest

from jax_ddpm.devices.compile_cache import (
    enable_compilation_cache,
    find_default_folder,
    remove_oldest_entries,
)


@pytest.fixture(autouse=True)
def jax_settings(monkeypatch, tmp_path):
    """Start with an empty user cache, and restore JAX's settings at the end."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    for name in names:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def get_chosen_folder():
    return jax.config.jax_compilation_cache_dir


def test_programs_go_to_a_private_folder_of_the_users_cache(tmp_path):
    folder = enable_compilation_cache()
    assert folder == find_default_folder()
    assert folder.is_relative_to(tmp_path / "cache" / "jax_ddpm" / "xla")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert get_chosen_folder() == str(folder)
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
    assert enable_compilation_cache() == folder  # it exists now


def test_the_usual_variable_or_an_argument_moves_it_and_off_turns_it_off(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "there"))
    assert enable_compilation_cache() == tmp_path / "there"
    assert enable_compilation_cache(tmp_path / "here") == tmp_path / "here"
    assert get_chosen_folder() == str(tmp_path / "here")
    assert (
        enable_compilation_cache("gs://bucket/programs")
        == get_chosen_folder()
        == "gs://bucket/programs"
    )
    assert enable_compilation_cache("off") is get_chosen_folder() is None
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "off")
    assert enable_compilation_cache() is get_chosen_folder() is None
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("mode", "given"), [(0o770, False), (0o702, False), (0o777, True)])
def test_a_folder_that_others_can_write_to_is_refused(tmp_path, capsys, mode, given):
    folder = tmp_path / "mine" if given else find_default_folder()
    folder.mkdir(parents=True)
    folder.chmod(mode)
    assert enable_compilation_cache(folder if given else None) is get_chosen_folder() is None
    printed = capsys.readouterr().err
    assert f"not cached: {folder} can be written to by others: chmod go-w" in printed
    assert printed.count("\n") == 1


def test_a_folder_of_another_user_is_refused(monkeypatch, capsys):
    find_default_folder().mkdir(parents=True, mode=0o700)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert enable_compilation_cache() is None
    assert "belongs to another user" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_gives_one_sentence_and_no_cache(tmp_path, capsys):
    (tmp_path / "cache").write_text("")
    assert enable_compilation_cache() is None
    assert "Not a directory" in capsys.readouterr().err


def test_half_written_entries_are_removed(tmp_path):
    whole = zlib.compress(b"program" * 100)
    entries = {"whole": whole, "cut": whole[:-5], "empty": b"", "other": b"(\xb5/\xfd zstd"}
    for name, data in entries.items():
        (tmp_path / f"{name}-cache").write_bytes(data)
    tmp_path.chmod(0o700)
    enable_compilation_cache(tmp_path)
    assert {path.name for path in tmp_path.glob("*-cache")} == {"whole-cache", "other-cache"}


def test_the_least_recently_used_entries_go_first(tmp_path):
    for i in range(4):
        path = tmp_path / f"{i}-cache"
        path.write_bytes(bytes(100))
        os.utime(path, (1000 + i, 10))
    os.utime(tmp_path / "0-cache", (2000, 10))  # read again later
    remove_oldest_entries(tmp_path, limit=250)
    assert {path.name for path in tmp_path.iterdir()} == {"0-cache", "3-cache"}
