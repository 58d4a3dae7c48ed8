"""Turns a freshly forked process into a child: runs in it, between the fork and the exec of the command.

    python -I -S launcher.py FD3 PARENT NOFILE LC_CTYPE -- CMD [ARG …]

Standard input, output and error are in place already. FD3 becomes descriptor 3, nothing stays open above it;
NOFILE is the soft limit of open files to give back ("-": as it is), LC_CTYPE the value the environment had
("-": none) before this interpreter's locale coercion changed it. A Popen(preexec_fn=…) would do the same
inside a copy of the arbiter, with its threads' locks as they happen to be.

Each start of a child pays for it, so it imports built-in modules only: 1 ms beyond the 9 ms of an empty `python -I -S`.
"""

import os
import sys

PR_SET_PDEATHSIG = 1
SIGKILL = 9


def main(argv):
    fd3, parent, nofile, lc_ctype = argv[1:5]
    command = argv[6:]
    move_to_3(int(fd3))
    if nofile != "-":
        give_back_file_limit(int(nofile))
    restore_signals()
    if lc_ctype == "-":
        os.environ.pop("LC_CTYPE", None)
    else:
        os.environ["LC_CTYPE"] = lc_ctype
    die_with_parent()
    # From here on the signal comes; if the parent has gone before, it will not.
    if os.getppid() != int(parent):
        os._exit(SIGKILL + 128)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        fail(command[0], error)


def move_to_3(fd):
    if fd == 3:
        os.set_inheritable(3, True)
    else:
        os.dup2(fd, 3, inheritable=True)
    os.closerange(4, 1 << 30)  # one close_range(2) where there is that; Popen has closed nearly all already


def give_back_file_limit(soft):
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY or soft <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def restore_signals():
    import _signal  # the C half of `signal`, whose other half imports enum

    _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)  # Python ignores these two at its start
    _signal.signal(_signal.SIGXFSZ, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())  # the pool thread blocks all


def die_with_parent():
    """Ask the kernel for SIGKILL when the thread that started us ends. Linux; elsewhere the seats do it."""
    if not sys.platform.startswith("linux"):
        return
    try:
        import _ctypes  # the ctypes package on top of it costs 4 ms

        prctl = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")
        _ctypes.call_function(prctl, (PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0))
    except Exception:
        try:
            import ctypes

            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
        except Exception:
            pass  # an interpreter without ctypes


def fail(program, error):
    """Say why in one line, with the exit status a shell would give."""
    import errno

    why = error.strerror
    if error.errno == errno.ENOENT:
        why = "no such file or directory"
        if "/" in program and os.path.exists(program):
            why = "the interpreter that its first line names does not exist"
        elif "/" not in program:
            why = "it is not on the PATH"
    elif error.errno == errno.ENOEXEC:
        why = "it is no program: a script needs a first line such as #!/usr/bin/env python3"
    elif error.errno == errno.EACCES:
        why = "permission denied"
    os.write(2, b"cannot run %s: %s\n" % (os.fsencode(program), why.encode("utf-8", "backslashreplace")))
    os._exit(127 if error.errno == errno.ENOENT else 126)


if __name__ == "__main__":
    main(sys.argv)
