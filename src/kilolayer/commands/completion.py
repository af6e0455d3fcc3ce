"""kilolayer completion: the script that makes a shell complete commands and options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from kilolayer.commands.flags import choice


@dataclass(frozen=True)
class Completion:
    """Print a shell's tab completion, for: eval "$(kilolayer completion bash)"."""

    shell: Annotated[tyro.conf.Positional[Literal["bash", "zsh", "tcsh"]], choice("bash", "zsh", "tcsh")]
    """Which shell."""


def completion(options: Completion) -> int:
    """Prints the script."""
    from kilolayer.cli import parse

    parse(["--tyro-print-completion", options.shell])
    return 0
