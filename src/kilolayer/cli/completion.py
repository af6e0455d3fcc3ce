"""kilolayer completion: prints a script that makes a shell complete commands, options, names and paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from kilolayer.cli.option_types import choice_option
from kilolayer.system.printer import print_data


@dataclass(frozen=True)
class CompletionOptions:
    """Print the script that makes a shell complete with the Tab key.

    It completes commands, options, names of networks, recipes, analyses and tables, and paths.
    """

    shell: Annotated[
        Positional[Literal["bash", "zsh", "fish", "tcsh"]],
        choice_option("bash", "zsh", "fish", "tcsh"),
        arg(metavar="SHELL"),
    ]
    """bash, zsh, fish or tcsh."""


def execute(options: CompletionOptions) -> int:
    """Prints the script."""
    print_data(f"{SCRIPTS[options.shell].strip()}\n")
    return 0


# Each script asks the program for words; the shell completes paths itself.
SCRIPTS = {
    "bash": r"""
_kilolayer() {
    local word=${COMP_WORDS[COMP_CWORD]} line
    [[ $word == = ]] && word=
    COMPREPLY=()
    while IFS= read -r line; do
        case $line in
            "<files>") compopt -o filenames
                while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -f -- "$word") ;;
            "<folders>") compopt -o filenames
                while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -d -- "$word") ;;
            "$word"*) [[ $line == *: ]] && compopt -o nospace; COMPREPLY+=("$line") ;;
        esac
    done < <(_KILOLAYER_COMPLETE=bash "$1" "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -F _kilolayer kilolayer
""",
    "zsh": r"""
#compdef kilolayer
_kilolayer() {
    local -a lines
    lines=("${(@f)$(_KILOLAYER_COMPLETE=zsh ${words[1]} "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    (( ${lines[(I)<files>]} )) && _files
    (( ${lines[(I)<folders>]} )) && _files -/
    lines=(${lines:#<*>})
    (( $#lines )) && compadd -- $lines
}
compdef _kilolayer kilolayer
""",
    "fish": r"""
function __kilolayer_words
    set -l before (commandline -opc)
    set -l word (commandline -ct)
    set -lx _KILOLAYER_COMPLETE fish
    for line in ($before[1] $before[2..] "$word" 2>/dev/null)
        switch $line
            case '<files>'
                __fish_complete_path "$word"
            case '<folders>'
                __fish_complete_directories "$word" ''
            case '*'
                echo $line
        end
    end
end
complete -c kilolayer -f -a '(__kilolayer_words)'
""",
    "tcsh": r"""
complete kilolayer 'p@*@`env _KILOLAYER_COMPLETE=tcsh kilolayer`@'
""",
}
