"""Warnings and log messages of libraries reach the user as single lines."""

import logging
import warnings

import pytest

from jax_ddpm.cli.ending import exit_after
from jax_ddpm.cli.library_messages import name_library


def warn_often():
    for _ in range(2):
        warnings.warn("the file\nis odd", UserWarning, stacklevel=1)
        logging.getLogger("orbax.checkpoint").warning("slow %s", "disk")
    warnings.warn("Some donated buffers were not usable: float32[3]", UserWarning, stacklevel=1)
    logging.getLogger("jax._src.xla_bridge").info("nothing")


def test_a_warning_is_one_line_and_said_once(capsys, recwarn):
    warnings.simplefilter("always")
    before, handlers = warnings.showwarning, list(logging.getLogger().handlers)
    with pytest.raises(SystemExit):
        exit_after(warn_often)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "note from test_library_messages: the file is odd",
        "note from orbax: slow disk",
    ]
    assert warnings.showwarning is before and logging.getLogger().handlers == handlers


def test_the_library_is_named_without_a_path():
    assert name_library("/usr/lib/python3/site-packages/PIL/Image.py") == "PIL"
    assert name_library("/usr/lib/python3/site-packages/six.py") == "six"
    assert name_library("/home/me/mine.py") == "mine"
