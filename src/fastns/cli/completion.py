"""`fastns completion`: prints a script that makes a shell complete commands and options."""

from __future__ import annotations

import argparse

from fastns.cli import VERBS, UsageError, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastns.cli._outline import Option, Verb
    from fastns.cli._parser import Parser

USAGE = "fastns completion bash|zsh|fish"
ABOUT = "Print a script that makes a shell complete the commands and options of fastns."
EPILOG = """\
examples:
  bash: mkdir -p ~/.local/share/bash-completion/completions
        cd ~/.local/share/bash-completion/completions
        fastns completion bash >fastns
  zsh:  fastns completion zsh >~/.zfunc/_fastns     # a directory of $fpath
  fish: fastns completion fish >~/.config/fish/completions/fastns.fish
"""
SHELLS = ("bash", "zsh", "fish")


def declare(parser: Parser) -> None:
    parser.add_argument("shell", metavar="SHELL", help="bash, zsh or fish")


def main(flags: argparse.Namespace) -> int:
    if flags.shell not in SHELLS:
        raise UsageError(f"completion {flags.shell}: unknown shell", f"one of {', '.join(SHELLS)}")
    from fastns.cli._outline import verbs

    found = [*verbs()]
    say({"bash": _bash, "zsh": _zsh, "fish": _fish}[flags.shell](found), end="")
    return 0


# ---- bash ----

BASH = """\
# Completion of fastns for bash, by `fastns completion bash`.
_fastns() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}}
    local first=2 i words values directories runs=
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W '{verbs} --help --version' -- "$cur"))
        return
    fi
    case ${{COMP_WORDS[1]}} in
{cases}
    *) return ;;
    esac
    if [[ $runs ]]; then # a command with its own arguments follows the options
        for ((i = first; i < COMP_CWORD; i++)); do
            case ${{COMP_WORDS[i]}} in
            --) _fastns_command $((i + 1)); return ;;
            = | :) ((i++)) ;; # bash splits these into separate words
            -*)
                [[ $values == *" ${{COMP_WORDS[i]}} "* ]] && ((i++))
                [[ ${{COMP_WORDS[i]}} == = ]] && ((i++))
                ;;
            *) _fastns_command "$i"; return ;;
            esac
        done
    fi
    case ${{COMP_WORDS[1]}}:$prev in
{choices}
    esac
    if [[ $directories == *" $prev "* ]]; then
        compopt -o filenames
        COMPREPLY=($(compgen -d -- "$cur"))
    elif [[ $values == *" $prev "* ]]; then
        compopt -o filenames
        COMPREPLY=($(compgen -f -- "$cur"))
    elif [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$words" -- "$cur"))
    elif [[ $runs ]]; then
        COMPREPLY=($(compgen -c -- "$cur"))
    else
        compopt -o filenames
        COMPREPLY=($(compgen -f -- "$cur"))
    fi
}}
_fastns_command() {{
    if declare -F _command_offset >/dev/null; then
        _command_offset "$1"
    elif ((COMP_CWORD == $1)); then
        COMPREPLY=($(compgen -c -- "${{COMP_WORDS[COMP_CWORD]}}"))
    else
        compopt -o filenames
        COMPREPLY=($(compgen -f -- "${{COMP_WORDS[COMP_CWORD]}}"))
    fi
}}
complete -F _fastns fastns
"""


def _bash(verbs: list[Verb]) -> str:
    cases, choices = [], []
    for verb in verbs:
        valued = [option for option in verb.options if option.metavar]
        directories = [option for option in valued if option.is_directory]
        lines = [
            f"if ((COMP_CWORD == 2)); then {_bash_offer(verb.action)}; return; fi",
            f"words='{_all_names(verb.options)}'",
            f"values=' {_all_names(valued)} '",
            f"directories=' {_all_names(directories)} '",
            *(["runs=1"] if verb.runs_command else []),
        ]
        body = "\n".join(f"        {line}" for line in lines[0 if verb.action else 1 :])
        cases.append(f"    {verb.name})\n{body}\n        ;;")
        for option in valued:
            if option.choices:
                pattern = " | ".join(f"{verb.name}:{name}" for name in option.names)
                choices.append(f"    {pattern}) {_bash_offer(*option.choices)}; return ;;")
    choices.append(f"    completion:completion) {_bash_offer(*SHELLS)}; return ;;")
    return BASH.format(verbs=" ".join(VERBS), cases="\n".join(cases), choices="\n".join(choices))


def _bash_offer(*words: str) -> str:
    return f"COMPREPLY=($(compgen -W '{' '.join(words)}' -- \"$cur\"))"


def _all_names(options: Iterable[Option]) -> str:
    return " ".join(name for option in options for name in option.names)


# ---- zsh ----


def _zsh(verbs: list[Verb]) -> str:
    lines = [
        "#compdef fastns",
        "# Completion of fastns for zsh, by `fastns completion zsh`.",
        "_fastns() {",
        "    local curcontext=$curcontext state line",
        "    if ((CURRENT == 2)); then",
        "        local -a verbs",
        "        verbs=(",
        *(f"            {_quoted(f'{name}:{what}')}" for name, what in VERBS.items()),
        "        )",
        "        _describe command verbs",
        "        return",
        "    fi",
        "    local verb=$words[2]",
        "    shift words; ((CURRENT--))",
        "    case $verb in",
    ]
    for verb in verbs:
        lines.append(f"    {verb.name})")
        if verb.action:
            lines.append(f"        ((CURRENT == 2)) && {{ compadd {verb.action}; return; }}")
            lines.append("        shift words; ((CURRENT--))")
        lines.append("        _arguments -S \\")
        lines += [f"            {_zsh_option(option)} \\" for option in verb.options]
        if verb.runs_command:
            lines.append("            '(-):command: _command_names -e' '*::arguments: _normal'")
        elif verb.name == "completion":
            lines.append(f"            '1:shell:({' '.join(SHELLS)})'")
        else:
            lines.append("            '*:file:_files'")
        lines.append("        ;;")
    return "\n".join([*lines, "    esac", "}", '_fastns "$@"', ""])


def _zsh_option(option: Option) -> str:
    names = "{" + ",".join(option.names) + "}" if len(option.names) > 1 else option.names[0]
    text = f"[{_bare(option.help)}]"
    if option.metavar:
        what = _bare(option.metavar).replace(":", "\\:")
        files = "_files -/" if option.is_directory else "_files"
        text += f":{what}:" + (f"({' '.join(option.choices)})" if option.choices else files)
    return f"\\*{names}{_quoted(text)}"


def _bare(text: str) -> str:
    return text.replace("[", "(").replace("]", ")")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# ---- fish ----


def _fish(verbs: list[Verb]) -> str:
    lines = [
        "# Completion of fastns for fish, by `fastns completion fish`.",
        "complete -c fastns -f -n __fish_use_subcommand -l help -l version",
    ]
    for name, what in VERBS.items():
        start = "complete -c fastns -f -n __fish_use_subcommand"
        lines.append(f"{start} -a {name} -d {_fish_quoted(what)}")
    for verb in verbs:
        seen = f"complete -c fastns -n '__fish_seen_subcommand_from {verb.name}'"
        if verb.action:
            lines.append(f"{seen} -a {verb.action}")
        if verb.runs_command:
            lines.append(f"{seen} -a '(__fish_complete_subcommand --fcs-skip=2)'")
        if verb.name == "completion":
            lines.append(f"{seen} -f -a '{' '.join(SHELLS)}'")
        for option in verb.options:
            kinds = {True: "-l", False: "-s"}
            words = [f"{kinds[name.startswith('--')]} {name.lstrip('-')}" for name in option.names]
            if option.choices:
                words.append(f"-x -a '{' '.join(option.choices)}'")
            elif option.is_directory:
                words.append("-x -a '(__fish_complete_directories)'")
            elif option.metavar:
                words.append("-r")
            lines.append(f"{seen} {' '.join(words)} -d {_fish_quoted(option.help)}")
    return "\n".join([*lines, ""])


def _fish_quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
