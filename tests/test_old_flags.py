"""Flags under their earlier names: they mean what they meant, with one warning, and nothing shows them."""

from __future__ import annotations

import pytest

from kilolayer.__main__ import main
from kilolayer.cli.command_line import command_flags, parse
from kilolayer.cli.command_table import COMMANDS
from kilolayer.cli.completion_words import completions_at
from kilolayer.cli.old_flags import OLD_FLAGS
from kilolayer.errors import InputError

VALUES = {"--resize": "projection", "--graph": "off", "--memory": "2GB", "--averaged": "0.1"}
REQUIRED = {"evaluate": ["run"], "show": ["resnet20_cifar"], "analyse": ["gradient", "resnet20_cifar"]}
USES = [
    (command, old)
    for old, new in OLD_FLAGS.items()
    for command in COMMANDS
    if new[0] in command_flags(command)
]


def words(command: str, *flag: str) -> list[str]:
    return [command, *REQUIRED.get(command, []), *flag]


def test_every_old_flag_is_of_some_command() -> None:
    assert {old for _, old in USES} == set(OLD_FLAGS)


@pytest.mark.parametrize(("command", "old"), USES)
@pytest.mark.parametrize("joined", [False, True])
def test_an_old_flag_means_the_new_one(
    command: str, old: str, joined: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    new = OLD_FLAGS[old]
    value = [] if len(new) > 1 else [VALUES.get(old, "0.5,1@0.5")]
    given = [f"{old}={value[0]}"] if joined and value else [old, *value]
    assert parse(words(command, *given)) == parse(words(command, *new, *value))
    assert capsys.readouterr().err == f"kilolayer: {old} is now called {' '.join(new)}\n"


@pytest.mark.parametrize(("command", "old"), USES)
def test_no_help_and_no_completion_shows_it(
    command: str, old: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert old not in command_flags(command)
    assert old not in completions_at([command, "--"])
    assert main([command, "--help"]) == 0
    assert f"{old} " not in capsys.readouterr().out


def test_underscores_are_hyphens(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["train", "--no_channels_last"]).compute.memory_format == "channels_first"
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("new_first", [False, True])
def test_both_names_are_rejected(new_first: bool) -> None:
    old, new = ["--averaged", "0.1"], ["--ema", "0.2"]
    with pytest.raises(InputError, match=r"^--averaged is the old name of --ema, and both are given; leave"):
        parse(["train", *(new + old if new_first else old + new)])


@pytest.mark.parametrize(
    ("given", "same"),
    [
        (["--resize", "zero_pad", "--resize=projection"], ["--downsample", "projection"]),
        (["--channels-last", "--no-channels-last"], ["--memory-format", "channels_first"]),
        (["--no-channels-last", "--channels-last"], ["--memory-format", "channels_last"]),
    ],
)
def test_an_old_flag_twice_counts_as_given_last(
    given: list[str], same: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse(["train", *given]) == parse(["train", *same])
    flags = {word.partition("=")[0] for word in given if word.startswith("--")}
    assert capsys.readouterr().err.count("\n") == len(flags)


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [
        ("--growt", "--progressive-depth"),
        ("--averagd", "--ema"),
        ("--at-change", "--downsample"),
        ("--grad-checkpointing", "--activation-memory"),
        ("--progresive-depth", "--progressive-depth"),
    ],
)
def test_an_unknown_flag_is_answered_with_a_flag_of_today(flag: str, nearest: str) -> None:
    with pytest.raises(InputError, match=f"has no option {flag}; nearest: {nearest}$"):
        parse(["train", flag, "1"])


def test_words_after_the_end_of_options_stay() -> None:
    assert parse(["predict", "run", "--", "--split"]).images == ("--split",)


@pytest.mark.parametrize("command", ["predict", "lens"])
def test_a_command_without_the_new_flag_has_no_old_one(command: str) -> None:
    with pytest.raises(InputError, match=f"kilolayer {command} has no option --averaged"):
        parse([command, "--averaged", "0.1"])
