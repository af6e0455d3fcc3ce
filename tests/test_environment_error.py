"""What a library says of an environment variable becomes one line; what our own code raises stays a bug."""

from __future__ import annotations

import tempfile

import pytest
import torch

from kilolayer import errors
from kilolayer.errors import InputError, environment_error
from kilolayer.training import choose_device


def raised_in(file: str, text: str) -> BaseException:
    """An error as a library raises it whose code stands in `file`."""
    try:
        exec(compile(f"raise ValueError({text!r})", file, "exec"))  # noqa: S102 - a library
    except ValueError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("TORCH_LOGS", "nonsense", "\n no such log, see TORCH_LOGS=help\nmore"),
        ("SOURCE_DATE_EPOCH", "1\x1be", "invalid literal for int() with base 10: '1\\x1be'"),
        ("MPLBACKEND", "gui", "Key backend: 'gui' is not a valid value"),
    ],
)
def test_a_variable_that_a_library_cannot_use_is_named(name, value, text, monkeypatch):
    monkeypatch.setenv(name, value)
    refusal = environment_error(raised_in("/lib/library.py", text))
    assert isinstance(refusal, InputError)
    reason = text.strip().split("\n")[0]
    assert str(refusal) == f"{name} is {value!r} in the environment ({reason}); correct or unset it"
    assert environment_error(raised_in(errors.__file__, text)) is None
    monkeypatch.delenv(name)
    assert environment_error(raised_in("/lib/library.py", text)) is None


def test_a_variable_that_no_library_reads_is_not_blamed(monkeypatch):
    monkeypatch.setenv("USER", "me")
    assert environment_error(raised_in("/lib/library.py", "there is no 'me', USER")) is None


def test_without_a_folder_for_temporary_files_a_line_says_so(monkeypatch):
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/nonexistent"])
    with pytest.raises(FileNotFoundError) as caught:
        tempfile._get_default_tempdir()
    assert "set TMPDIR" in str(environment_error(caught.value))


def test_a_processor_that_cannot_be_read_is_refused_before_a_training(monkeypatch):
    def unreadable(*_: object) -> None:
        raise RuntimeError("Failed to initialize cpuinfo!")

    monkeypatch.setattr(torch.Tensor, "to", unreadable)
    with pytest.raises(InputError, match=r"Failed to initialize cpuinfo.*; mount /proc and /sys"):
        choose_device("cpu")
