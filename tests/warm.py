"""A Python that has torch and fairseq loaded already, for the tests that run commands.

:func:`python` is used in place of ``sys.executable``. What it names is a small program: it hands its arguments, folder,
environment and standard streams to a server, which forks and runs them there, and it ends with the same status. The
command has a process of its own, and imports the plugin itself, as ever; only the four seconds that importing torch and
fairseq takes are spent once. ``SD_COLD=1`` makes every such process a plain Python again.
"""

import array
import atexit
import functools
import importlib
import json
import os
import runpy
import selectors
import shlex
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
import types
import warnings


@functools.lru_cache(maxsize=None)
def python() -> str:
    """Starts the server the first time; returns the program to run instead of ``sys.executable``."""
    if os.environ.get("SD_COLD") or not hasattr(os, "fork"):
        return sys.executable
    folder = tempfile.mkdtemp(prefix="warm-python-")
    address, program = os.path.join(folder, "socket"), os.path.join(folder, "python")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    with open(program, "w", encoding="utf-8") as text:
        words = [sys.executable, "-I", "-S", os.path.abspath(__file__), address]
        text.write("#!/bin/sh\nexec " + " ".join(map(shlex.quote, words)) + ' "$@"\n')
    os.chmod(program, 0o700)
    command = [sys.executable, os.path.abspath(__file__), "--serve", program, str(listening.fileno())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "pass_fds": [listening.fileno()]}
    server = subprocess.Popen(command, env=environment, cwd=folder, **pipes)
    listening.close()
    atexit.register(stop, server, folder)
    return program


def stop(server, folder):
    """Ends the server, which sees that nobody holds its standard input any more."""
    server.stdin.close()
    server.wait()
    for name in os.listdir(folder):
        os.remove(os.path.join(folder, name))
    os.rmdir(folder)


def ask(address, words):
    """Has the server run a command with this process's streams; returns the status."""
    request = json.dumps({"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        streams = array.array("i", [0, 1, 2])
        connection.sendmsg([struct.pack("i", len(request))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        connection.sendall(request)
        answer = connection.recv(4)
    return struct.unpack("i", answer)[0] if answer else 1


def serve(program, listening):
    """Forks for every request until standard input ends; a request whose asker goes is killed."""
    search = [place for place in sys.path if place != os.path.dirname(os.path.abspath(__file__))]
    variable = os.environ.get("PYTHONPATH", "")
    given = [os.path.abspath(place) for place in variable.split(os.pathsep) if place]
    search = [place for place in search if place not in given]
    importlib.import_module("loaded")
    sys.path[:] = search
    sys.executable = program  # a command that starts another one
    signal.signal(signal.SIGCHLD, lambda *_: None)
    waking, woken = socket.socketpair()
    woken.setblocking(False)
    waking.setblocking(False)
    signal.set_wakeup_fd(woken.fileno())
    running = {}  # process -> connection
    with selectors.DefaultSelector() as ready:
        for stream in (sys.stdin, listening, waking):
            ready.register(stream, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fileobj is sys.stdin:
                    for process in running:
                        os.kill(process, signal.SIGKILL)
                    os._exit(0)
                elif key.fileobj is listening:
                    connection, _ = listening.accept()
                    process = start(connection, search)
                    running[process] = connection
                    ready.register(connection, selectors.EVENT_READ, process)
                elif key.fileobj is waking:
                    waking.recv(4096)
                    report(running, ready)
                elif key.data in running:  # its asker has gone
                    ready.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGKILL)


def report(running, ready):
    """Tells the askers of the processes that ended how they ended."""
    while running:
        process, status = os.waitpid(-1, os.WNOHANG)
        if not process:
            return
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
        with running.pop(process) as connection:
            try:
                ready.unregister(connection)
                connection.sendall(struct.pack("i", code))
            except (KeyError, OSError):  # its asker had gone before
                pass


def start(connection, search):
    """Reads one request and forks; returns the process."""
    streams = array.array("i")
    size, more, _, _ = connection.recvmsg(4, socket.CMSG_SPACE(3 * streams.itemsize))
    streams.frombytes(more[0][2][: 3 * streams.itemsize])
    request = json.loads(connection.recv(struct.unpack("i", size)[0], socket.MSG_WAITALL).decode())
    process = os.fork()
    if process:
        for stream in streams:
            os.close(stream)
        return process
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.closerange(3, 256)
        code = run(request, search)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def run(request, search):
    """Does what ``python WORDS`` does, in this process; returns the status."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    words, code = list(request["words"]), 0
    warnings.resetwarnings()
    given = [os.environ["PYTHONWARNINGS"]] if os.environ.get("PYTHONWARNINGS") else []
    while words and words[0] == "-W":
        given.append(words[1])
        del words[:2]
    for action in given:
        warnings.simplefilter(action)
    sys.path[:] = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place] + search
    try:
        execute(words)
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
        if code and not isinstance(stopped.code, int):
            print(stopped.code, file=sys.stderr)
    except BaseException:
        code = 1
        sys.excepthook(*sys.exc_info())
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code


def execute(words):
    """Runs ``-m MODULE``, ``-c CODE`` or a file."""
    kind = words[0]
    if kind == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, "")
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), vars(sys.modules["__main__"]))
    else:
        sys.argv = words
        sys.path.insert(0, os.path.dirname(os.path.abspath(kind)))
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2], socket.socket(fileno=int(sys.argv[3])))
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
