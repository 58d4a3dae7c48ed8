"""Turns a freshly forked process into a child: runs in it, between the fork and the exec of the command.

    python -I -S launcher.py FD3 PARENT NOFILE LC_CTYPE USER GROUP GROUPS [OPTION=VALUE …] -- CMD [ARG …]

Standard input, output and error are in place already. FD3 becomes descriptor 3, nothing stays open above it;
NOFILE is the soft limit of open files to give back, LC_CTYPE the value the environment had before this
interpreter's locale coercion changed it (none, if "-"), USER, GROUP and GROUPS (with commas between) whose
process it becomes; "-" leaves what is. The options are confinement.py's: limits, priorities and the like,
carried out in that order, while we are still who may. Popen could change the user too, but then before it has
started this interpreter, which that user may not be allowed to: a virtual environment in /root. A
Popen(preexec_fn=…) would do all this inside a copy of the arbiter, with its threads' locks as they happen to
be.

Each start of a child pays for it, so it imports built-in modules only: 1 ms beyond the 9 ms of an empty
`python -I -S`.
"""

import os
import sys
from errno import EACCES, EINVAL, ENOENT, ENOEXEC, ENOTDIR

TYPE_CHECKING = False  # typing's constant of this name would cost the import of typing
if TYPE_CHECKING:
    from collections.abc import Callable

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
SIGKILL = 9


def main(argv: list[str]) -> None:
    fd3, parent, nofile, lc_ctype, user, group, groups = argv[1:8]
    dashes = argv.index("--", 8)
    confinement, command = argv[8:dashes], argv[dashes + 1 :]
    move_to_3(int(fd3))
    if nofile != "-":
        give_back_file_limit(int(nofile))
    restore_signals()
    if lc_ctype == "-":
        os.environ.pop("LC_CTYPE", None)
    else:
        os.environ["LC_CTYPE"] = lc_ctype
    prctl = find_prctl()  # while we may still read what the interpreter loads for it
    for word in confinement:
        confine(word, prctl)
    try:
        become(user, group, groups)
    except OSError as error:
        say(
            b"cannot run as user %s, group %s: %s"
            % (user.encode(), group.encode(), str(error.strerror).encode())
        )
        os._exit(126)
    # Ask the kernel for SIGKILL when the thread that started us ends; a change of user would have cleared it.
    prctl(PR_SET_PDEATHSIG, SIGKILL)
    # From here on the signal comes; if the parent has gone before, it will not.
    if os.getppid() != int(parent):
        os._exit(SIGKILL + 128)
    execute(command)


def move_to_3(fd: int) -> None:
    if fd == 3:
        os.set_inheritable(3, True)
    else:
        os.dup2(fd, 3, inheritable=True)
    os.closerange(4, 1 << 30)  # one close_range(2) where there is that; Popen has closed nearly all already


def give_back_file_limit(soft: int) -> None:
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY or soft <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def confine(word: str, prctl: "Callable[..., object]") -> None:
    """Carry one option out, or end with a sentence: a child that is not confined as its owner wants is not to
    run."""
    option, _, value = word.partition("=")
    try:
        if option.startswith("worker_rlimit_"):
            import resource

            soft, hard = value.split(":")
            number = getattr(resource, option[len("worker_") :].upper())
            resource.setrlimit(number, (int(soft), int(hard)))
        elif option == "worker_nice":
            os.nice(int(value))
        elif option == "worker_oom_score_adj":
            with open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
                file.write(value.encode())
        elif prctl(PR_SET_NO_NEW_PRIVS, 1) != 0:  # worker_no_new_privs
            raise OSError(EINVAL, "the kernel does not take it")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        say(b"cannot set %s to %s: %s" % (option.encode(), value.encode(), why.encode()))
        os._exit(126)


def become(user: str, group: str, groups: str) -> None:
    if groups != "-":
        os.setgroups([int(number) for number in groups.split(",")])
    if group != "-":
        os.setgid(int(group))
    if user != "-":
        os.setuid(int(user))


def restore_signals() -> None:
    import _signal  # type: ignore[import-not-found]  # the C half of `signal`, whose other half imports enum

    _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)  # Python ignores these two at its start
    _signal.signal(_signal.SIGXFSZ, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())  # the pool thread blocks all


def find_prctl() -> "Callable[..., object]":
    """Linux has it; elsewhere, and in an interpreter without ctypes, the seats end the children of a dead
    arbiter."""
    if sys.platform.startswith("linux"):
        try:
            import _ctypes  # the ctypes package on top of it costs 4 ms

            address = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]
            return lambda *words: _ctypes.call_function(address, (*words, 0, 0, 0))
        except Exception:
            try:
                import ctypes

                function = ctypes.CDLL(None).prctl
                return lambda *words: function(*words, 0, 0, 0)
            except Exception:
                pass
    return lambda *words: None


def execute(command: list[str]) -> None:
    """As os.execvp, which imports a module in between, when the user we have become may not read it any
    more."""
    program = os.fsencode(command[0])
    paths = [program]
    if b"/" not in program:
        paths = [
            os.path.join(place, program) for place in os.environb.get(b"PATH", b"/bin:/usr/bin").split(b":")
        ]
    found = OSError(ENOENT, "")
    for path in paths:
        try:
            os.execv(path, command)
        except OSError as error:
            if error.errno not in (ENOENT, ENOTDIR):
                found = error
    why = str(found.strerror)
    if found.errno == EACCES:
        why = "permission denied"
    elif found.errno == ENOEXEC:
        why = "it is no program: a script needs a first line such as #!/usr/bin/env python3"
    elif found.errno in (ENOENT, ENOTDIR):
        why = "no such file or directory"
        if b"/" not in program:
            why = "it is not on the PATH"
        elif os.path.exists(program):
            why = "the interpreter that its first line names does not exist"
    say(b"cannot run %s: %s" % (program, os.fsencode(why)))
    os._exit(127 if found.errno in (ENOENT, ENOTDIR) else 126)


def say(line: bytes) -> None:
    os.write(2, line + b"\n")


if __name__ == "__main__":
    main(sys.argv)
