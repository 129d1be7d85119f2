"""Runs a command at a terminal of its own, shows what it prints, and ends as it does.

terminal.py answer TEXT COMMAND...: types TEXT when it is asked something.
terminal.py ctrl-c FOLDER COMMAND...: types Ctrl-C when a download has come to FOLDER.
"""

import os
import pathlib
import pty
import select
import sys
import time

what, argument, *command = sys.argv[1:]


def is_time(printed):
    if what == "answer":
        return b"[y/N]" in printed
    files = pathlib.Path(argument).glob("raynode-install.*/raynode-*.tar.gz")
    return any(file.stat().st_size > 10_000 for file in files)


pid, terminal = pty.fork()
if pid == 0:
    os.execvp(command[0], command)
printed, typed = b"", False
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    if not typed and is_time(printed):
        os.write(terminal, b"\x03" if what == "ctrl-c" else argument.encode() + b"\n")
        typed = True
    if select.select([terminal], [], [], 0.05)[0]:
        try:
            read = os.read(terminal, 65536)
        except OSError:
            # Its last program has ended.
            break
        printed += read
        sys.stdout.buffer.write(read)
        sys.stdout.flush()
else:
    os.kill(pid, 9)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if typed else 99)
