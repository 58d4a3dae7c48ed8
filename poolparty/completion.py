"""Completion for bash, zsh and fish, made from the tables of poolparty.programs.

`poolparty-ctl completion SHELL` prints one script for all our commands, to be sourced or kept where the shell
looks for such. Where a worker's pid or a pool's name is wanted the script asks the running server.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence

from poolparty.programs import (
    COMMAND,
    DIRECTORY,
    FILE,
    GROUP,
    PID,
    POOL,
    USER,
    Flag,
    Program,
    Value,
    programs,
)

PLACES = {
    "bash": "~/.local/share/bash-completion/completions/poolparty, and links poolparty-ctl and "
    "poolparty-compress to it",
    "zsh": "_poolparty in a directory of $fpath",
    "fish": "~/.config/fish/completions/poolparty.fish, and links for the others",
}

ASK = {
    PID: """ps 2>/dev/null | awk '$2 == "worker" { print $1 }'""",
    POOL: """stats 2>/dev/null | awk '$1 == "pool" { print substr($2, 6) }'""",
}
"""What the server is asked for the values of a kind; it names its pools where it has several."""


def _function(program: Program) -> str:
    return "_" + program.name.replace("-", "_")


def _brief(text: str) -> str:
    """One line of help: the first sentence, without its full stop and the default behind it."""
    return re.split(r"\.(?: |$)", text, maxsplit=1)[0]


# --- bash --------------------------------------------------------------------------------------------------

BASH = r"""# bash completion for poolparty, poolparty-ctl and poolparty-compress.

# _poolparty_value KIND [WORD ...]: what the word under the cursor may become.
_poolparty_value() {
    local kind=$1 found
    shift
    case $kind in
    file) compopt -o filenames 2>/dev/null; found=$(compgen -f -- "$cur") ;;
    directory) compopt -o filenames 2>/dev/null; found=$(compgen -d -- "$cur") ;;
    user) found=$(compgen -u -- "$cur") ;;
    group) found=$(compgen -g -- "$cur") ;;
    command) found=$(compgen -c -- "$cur") ;;
@ASK@
    words) found=$(compgen -W "$*" -- "$cur") ;;
    esac
    [ -z "$found" ] || mapfile -t COMPREPLY <<<"$found"
}

# _poolparty_words: sets cur and prev; bash may have cut --option=value into three words. Succeeds where a
# command line behind `--` is completed, and does it.
_poolparty_words() {
    COMPREPLY=()
    socket=
    cur=${COMP_WORDS[COMP_CWORD]}
    prev=${COMP_WORDS[COMP_CWORD - 1]}
    if [ "$cur" = = ]; then
        cur=
    elif [ "$prev" = = ]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    local i
    for ((i = 1; i < COMP_CWORD; i++)); do
        if [ "${COMP_WORDS[i]}" = -- ]; then
            if ((i == COMP_CWORD - 1)); then
                _poolparty_value command
            else
                _poolparty_value file
            fi
            return 0
        fi
    done
    return 1
}
"""


BASH_ASK = """    @KIND@)
        found=$(compgen -W "$("${COMP_WORDS[0]}" ${socket:+--ctl-socket "$socket"} @ASK@)" -- "$cur") ;;"""


def _bash(all_programs: Sequence[Program]) -> Iterator[str]:
    asks = (BASH_ASK.replace("@KIND@", kind).replace("@ASK@", ask) for kind, ask in ASK.items())
    yield BASH.replace("@ASK@", "\n".join(asks))
    for program in all_programs:
        yield f"{_function(program)}() {{"
        yield "    local cur prev socket"
        yield "    ! _poolparty_words || return 0"
        yield "    case $prev in"
        yield from _bash_values(program.flags, 4)
        yield "    esac"
        names = " ".join(name for flag in program.flags for name in flag.names)
        if program.words:
            yield from _bash_words(program, names)
        elif program.argument is not None and program.argument.kind != COMMAND:
            yield f"    case $cur in -*) ;; *) _poolparty_value {program.argument.kind}; return ;; esac"
            yield f"    _poolparty_value words {names}"
        else:
            yield f"    _poolparty_value words {names} --"
        yield "}"
        yield f"complete -F {_function(program)} {program.name}"
        yield ""


def _bash_words(program: Program, names: str) -> Iterator[str]:
    """Of poolparty-ctl: the command is the first word that is neither an option nor its value."""
    yield "    local i word="
    yield "    for ((i = 1; i < COMP_CWORD; i++)); do"
    yield "        case ${COMP_WORDS[i]} in"
    yield "        --ctl-socket)"
    yield '            [ "${COMP_WORDS[i + 1]}" != = ] || ((i++))'
    yield "            socket=${COMP_WORDS[++i]} ;;"
    yield "        -*) ;;"
    yield "        *) word=${COMP_WORDS[i]}; break ;;"
    yield "        esac"
    yield "    done"
    yield "    case $word in"
    every = " ".join(word.command.name for word in program.all_words)
    yield f"    '') _poolparty_value words {every} {names} ;;"
    for word in program.all_words:
        yield f"    {word.command.name})"
        if any(flag.value for flag in word.flags):
            yield "        case $prev in"
            yield from _bash_values(word.flags, 8)
            yield "        esac"
        for value in word.values:
            if value.kind:
                # What stands behind a number is not offered in its place.
                when = "[[ $prev != *[0-9] ]] || " if value != word.values[0] else ""
                yield f"        case $cur in -*) ;; *) {when}_poolparty_value {value.kind}; return ;; esac"
        offered = [name for flag in word.flags for name in flag.names]
        offered += [choice for value in word.values for choice in value.words]
        offered += ["--"] if word.runs_command else []
        if offered:
            yield f"        _poolparty_value words {' '.join(offered)}"
        yield "        ;;"
    yield "    esac"


def _bash_values(flags: Sequence[Flag], indent: int) -> Iterator[str]:
    """Cases of the word before the cursor: options that take a value."""
    for flag in flags:
        if flag.value is not None:
            what = " ".join(("words", *flag.value.words)) if flag.value.words else flag.value.kind
            does = f"_poolparty_value {what}; " if what else ""
            yield f"{' ' * indent}{' | '.join(flag.names)}) {does}return ;;"


# --- zsh ---------------------------------------------------------------------------------------------------

ZSH_ACTIONS = {
    FILE: "_files",
    DIRECTORY: "_files -/",
    USER: "_users",
    GROUP: "_groups",
    PID: "_poolparty_pids",
    POOL: "_poolparty_pools",
    COMMAND: "_normal",
    "": " ",
}


def _zsh(all_programs: Sequence[Program]) -> Iterator[str]:
    yield f"#compdef {' '.join(program.name for program in all_programs)}"
    yield "# zsh completion for poolparty, poolparty-ctl and poolparty-compress."
    yield ""
    for kind, ask in ASK.items():
        yield f"_poolparty_{kind}s() {{"
        yield "    local -a socket found"
        yield "    [[ -n $ctl_socket ]] && socket=(--ctl-socket $ctl_socket)"
        yield f'    found=(${{(f)"$(poolparty-ctl $socket {ask})"}})'
        yield f"    (( $#found )) && _values {kind} $found"
        yield "}"
    for program in all_programs:
        yield ""
        yield f"{_zsh_function(program)}() {{"
        if program.words:
            yield from _zsh_words(program)
        else:
            yield "    _arguments -s -S \\"
            for flag in program.flags:
                yield from (f"        {spec} \\" for spec in _zsh_flag(flag))
            assert program.argument is not None
            yield f"        {_zsh_rest(program.argument)}"
        yield "}"
    yield ""
    yield "case ${service:-} in"
    for program in all_programs:
        yield f'{program.name}) {_zsh_function(program)} "$@" ;;'
    names = " ".join(f"{_zsh_function(program)} {program.name};" for program in all_programs)
    yield f"*) {'; '.join('compdef ' + pair.strip() for pair in names.split(';') if pair.strip())} ;;"
    yield "esac"


def _zsh_function(program: Program) -> str:
    return f"{_function(program)}_command"


def _zsh_words(program: Program) -> Iterator[str]:
    yield "    local curcontext=$curcontext state line"
    yield "    typeset -A opt_args"
    yield "    local -a commands"
    yield "    _arguments -s -C -A '-*' \\"
    for flag in program.flags:
        yield from (f"        {spec} \\" for spec in _zsh_flag(flag))
    yield "        '1: :->command' '*:: :->arguments' && return"
    # Kept for _poolparty_pids: an inner _arguments begins opt_args anew.
    yield "    local ctl_socket=${(Q)opt_args[--ctl-socket]:-}"
    yield "    case $state in"
    yield "    command)"
    yield "        commands=("
    for word in program.all_words:
        yield f"            {_single(word.command.name + ':' + word.command.help)}"
    yield "        )"
    yield "        _describe -t commands command commands ;;"
    yield "    arguments)"
    yield "        case $words[1] in"
    for word in program.all_words:
        specs = [spec for flag in word.flags for spec in _zsh_flag(flag)]
        specs += [_single(f"{place}:{_zsh_value(value)}") for place, value in enumerate(word.values, 1)]
        specs += [_zsh_rest(Value("CMD", COMMAND))] if word.runs_command else []
        if specs:
            yield f"        {word.command.name}) _arguments -S {' '.join(specs)} ;;"
    yield "        esac ;;"
    yield "    esac"


def _zsh_rest(value: Value) -> str:
    return _single(f"*::{_zsh_value(value)}" if value.kind == COMMAND else f"1:{_zsh_value(value)}")


def _zsh_flag(flag: Flag) -> Iterator[str]:
    text = re.sub(r"([\[\]:\\])", r"\\\1", _brief(flag.text[0]))
    star = "*" if flag.repeated else ""
    for name in flag.names:
        joined = "" if flag.value is None else ("=" if name.startswith("--") else "+")
        optional = ":" if flag.value is not None and flag.value.meta.startswith("[") else ""
        value = "" if flag.value is None else f"{optional}:{_zsh_value(flag.value)}"
        help_text = f"[{text}]" if text else ""
        yield _single(f"{star}{name}{joined}{help_text}{value}")


def _zsh_value(value: Value) -> str:
    meta = re.sub(r"[\[\]:]", "", value.meta)
    return f"{meta}:" + (f"({' '.join(value.words)})" if value.words else ZSH_ACTIONS[value.kind])


# --- fish --------------------------------------------------------------------------------------------------

FISH_ACTIONS = {
    FILE: "-r -F",
    DIRECTORY: "-x -a '(__fish_complete_directories)'",
    USER: "-x -a '(__fish_complete_users)'",
    GROUP: "-x -a '(__fish_complete_groups)'",
    PID: "-x -a '(__poolparty_pids)'",
    POOL: "-x -a '(__poolparty_pools)'",
    COMMAND: "-x -a '(__fish_complete_command)'",
    "": "-x",
}
FISH = """# fish completion for poolparty, poolparty-ctl and poolparty-compress.

function __poolparty_before_command
    not contains -- -- (commandline -opc)
end

# What stands behind `--` is completed as the command line that it is.
function __poolparty_command
    set -l words (commandline -opc)
    set -l at (contains -i -- -- $words)
    and complete -C (string join ' ' -- (string escape -- $words[(math $at + 1)..]) (commandline -ct))
end

function __poolparty_behind_number
    string match -qr '[0-9]$' -- (commandline -opc)[-1]
end
"""
FISH_ASK = """
function __poolparty_@KIND@s
    set -l words (commandline -opc)
    set -l socket
    if set -l at (contains -i -- --ctl-socket $words)
        set socket --ctl-socket $words[(math $at + 1)]
    end
    $words[1] $socket @ASK@
end
"""


def _fish(all_programs: Sequence[Program]) -> Iterator[str]:
    yield FISH
    for kind, ask in ASK.items():
        yield FISH_ASK.replace("@KIND@", kind).replace("@ASK@", ask)
    for program in all_programs:
        yield f"complete -c {program.name} -f"
        runs_command = program.argument is not None and program.argument.kind == COMMAND
        if runs_command or program.words:
            behind = "-n 'not __poolparty_before_command' -x -a '(__poolparty_command)'"
            yield f"complete -c {program.name} {behind}"
        elif program.argument is not None:
            yield f"complete -c {program.name} {FISH_ACTIONS[program.argument.kind]}"
        seen = "__poolparty_before_command"
        every = " ".join(word.command.name for word in program.all_words)
        if every:
            seen += f"; and not __fish_seen_subcommand_from {every}"
        for flag in program.flags:
            yield _fish_flag(program, flag, seen)
        for word in program.all_words:
            offer = f"-a {word.command.name} -d {_fish_quote(word.command.help)}"
            yield f"complete -c {program.name} -n '{seen}' {offer}"
            here = f"__poolparty_before_command; and __fish_seen_subcommand_from {word.command.name}"
            for flag in word.flags:
                yield _fish_flag(program, flag, here)
            for value in word.values:
                if value.kind or value.words:
                    offers = f"(__poolparty_{value.kind}s)" if value.kind in ASK else " ".join(value.words)
                    when = here if value == word.values[0] else f"{here}; and __poolparty_behind_number"
                    yield f"complete -c {program.name} -n '{when}' -a '{offers}' -d {_fish_quote(value.meta)}"
        yield ""


def _fish_flag(program: Program, flag: Flag, condition: str) -> str:
    names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in flag.names)
    value = ""
    if flag.value is not None:
        value = (
            f" -x -a '{' '.join(flag.value.words)}'"
            if flag.value.words
            else f" {FISH_ACTIONS[flag.value.kind]}"
        )
    text = f" -d {_fish_quote(_brief(flag.text[0]))}" if flag.text[0] else ""
    return f"complete -c {program.name} -n '{condition}' {names}{value}{text}"


def _fish_quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _single(text: str) -> str:
    """A word of a POSIX shell, in single quotes."""
    return "'" + text.replace("'", "'\\''") + "'"


SHELLS: dict[str, Callable[[Sequence[Program]], Iterator[str]]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}


def script(shell: str) -> str:
    """The script for one of SHELLS."""
    return "\n".join(SHELLS[shell](programs())) + "\n"


def main(words: Sequence[str]) -> int:
    """`poolparty-ctl completion`; returns the exit status."""
    if len(words) != 1 or words[0] not in SHELLS:
        print(
            "usage: poolparty-ctl completion bash|zsh|fish\n\nWhere to keep what it prints:", file=sys.stderr
        )
        for shell, place in PLACES.items():
            print(f"  {shell}: {place}", file=sys.stderr)
        return 2
    sys.stdout.write(script(words[0]))
    return 0
