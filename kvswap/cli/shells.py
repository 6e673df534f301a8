"""Shells that complete command lines of kvswap: their scripts, and what they are answered."""

from __future__ import annotations

import os

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    split_arg_string,
)

VARIABLE = "_KVSWAP_COMPLETE"
# The whole line is passed on, and not bash's words: it cuts `sha256:...` at the colon.
_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' line
    COMPREPLY=()
    while read -r line; do
        case "$line" in
            plain,*) COMPREPLY+=("${line#plain,}") ;;
            dir,*) compopt -o dirnames 2>/dev/null ;;
            file,*) compopt -o default 2>/dev/null ;;
        esac
    done < <(COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
    return 0
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""
# How to switch it on, at the top of what is printed.
HOW = {
    "bash": """\
# Completion of kvswap in bash 4.4 or newer.  For this shell alone:
#   eval "$(kvswap completion bash)"
# For every shell from now on:
#   mkdir -p ~/.local/share/bash-completion/completions
#   kvswap completion bash > ~/.local/share/bash-completion/completions/kvswap
# (where bash-completion is not installed: append the eval line to ~/.bashrc)
""",
    "zsh": """\
# Completion of kvswap in zsh.  For this shell alone:
#   eval "$(kvswap completion zsh)"
# For every shell from now on: append that line to ~/.zshrc, after compinit.
""",
    "fish": """\
# Completion of kvswap in fish.  For this shell alone:
#   kvswap completion fish | source
# For every shell from now on:
#   kvswap completion fish > ~/.config/fish/completions/kvswap.fish
""",
}


class Bash(BashComplete):
    """Completion in bash, by the line as it was typed."""

    source_template = _BASH

    @staticmethod
    def _check_version() -> None:
        """Start no bash to ask for its version: an old one says itself what it does not know."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the one that is completed, and that one."""
        line = os.environ.get("COMP_LINE", "")
        words = split_arg_string(line)
        incomplete = words.pop() if words and not line[-1].isspace() else ""
        return words[1:], incomplete

    def format_completion(self, item: CompletionItem[str]) -> str:
        """Return the line for the script; of a value only what follows the last colon, where bash cuts there."""
        value, (_, typed) = item.value, self.get_completion_args()
        before, colon, _ = typed.rpartition(":")
        if colon and ":" in os.environ.get("COMP_WORDBREAKS", ""):
            value = value.removeprefix(before + colon)
        return f"{item.type},{value}"


SHELLS: dict[str, type[ShellComplete]] = {"bash": Bash, "zsh": ZshComplete, "fish": FishComplete}


def register() -> None:
    """Let this process answer a shell that asks for completions, when it comes to that."""
    add_completion_class(Bash)


def script(shell: str) -> str:
    """Return the script for a shell, with how to switch it on."""
    root = click.get_current_context().find_root().command
    return HOW[shell] + SHELLS[shell](root, {}, "kvswap", VARIABLE).source()
