import os
import tempfile

import pytest

from train import sandbox
from train.sandbox import Call, Limits

OS = (
    "held = [c for c in object.__subclasses__() if c.__name__ == '_wrap_close'][0]\n"
    "os = held.__init__.__globals__\n"
)
"""How a program comes by `os`, which it may not import."""


def error(program, name="f", *arguments, **limits):
    outcome = sandbox.run(program, [Call(name, arguments)], Limits(**limits))
    assert outcome.error is None or outcome.values == ()
    return outcome.error


def test_a_right_program_passes_and_a_wrong_one_does_not():
    calls = [Call("f", ([3, 1, 2],)), Call("f", ([],))]
    assert sandbox.passes("def f(x): return sorted(x)", calls, [[1, 2, 3], []])
    assert not sandbox.passes("def f(x): return x", calls, [[1, 2, 3], []])
    outcome = sandbox.run("def f(x): return x, len(x)", calls)
    assert outcome.values == ([[3, 1, 2], 3], [[], 0])


def test_values_differ_where_their_types_in_json_do():
    call = [Call("f", (1,))]
    assert not sandbox.passes("def f(x): return x == 1", call, [1])
    assert not sandbox.passes("def f(x): return x * 1.0", call, [1])
    assert sandbox.passes("def f(x): return x * 1.0", call, [1.0])


def test_programs_may_import_the_modules_that_are_listed():
    program = "".join(f"import {name}\n" for name in sandbox.sandboxed.MODULES)
    program += (
        "from collections import namedtuple, Counter\n"
        "pair = namedtuple('pair', 'a b')\n"
        "@functools.cache\n"
        "def f(x: typing.List[int] = None):\n"
        "    found = re.sub(r'\\d', '-', 'a1b2')\n"
        "    return [pair(math.gcd(12, 18), found), Counter('aab')['a'], id(f) > 0]\n"
    )
    assert sandbox.passes(program, [Call("f", ())], [[[6, "a-b-"], 2, True]])


@pytest.mark.parametrize("name", ["os", "subprocess", "socket", "ctypes", "sys"])
def test_programs_may_import_nothing_else(name):
    assert error(f"import {name}\ndef f(): return 1") == (
        "the program raised ImportError"
    )


def test_an_endless_loop_ends_at_its_cpu_time_or_by_the_clock():
    loop = "def f():\n    while True:\n        try: g()\n        except: pass\n"
    assert "without a report" in error(loop, cpu_seconds=1, wall_seconds=60.0)
    assert "more than 0.2 seconds" in error(loop, cpu_seconds=60, wall_seconds=0.2)


def test_a_program_has_no_more_memory_than_its_limit():
    bomb = "def f(): return len('x' * 300_000_000)"
    assert error(bomb, memory_bytes=128 << 20) == "call 1 raised MemoryError"
    assert error(bomb, memory_bytes=1 << 30) is None


def test_recursion_without_end_is_an_error_of_the_program():
    assert error("def f(): return f()") == "call 1 raised RecursionError"


@pytest.mark.parametrize(
    ("what", "event"),
    [
        ("os['fork']()", "os.fork"),
        ("os['system']('true')", "os.system"),
        ("os['execv']('/bin/true', ['true'])", "os.exec"),
        ("os['posix_spawn']('/bin/true', ['true'], {})", "os.posix_spawn"),
        ("os['kill'](os['getppid'](), 0)", "os.kill"),
        ("os['listdir']('/')", "os.listdir"),
        ("os['symlink']('/etc/passwd', 'near')", "os.symlink"),
        ("os['mkdir']('near')", "os.mkdir"),
        ("os['chdir']('/')", "os.chdir"),
        ("os['sys'].settrace(print)", "sys.settrace"),
        ("os['sys'].modules['builtins'].__import__('socket')", "import"),
        ("os['sys'].modules['builtins'].__import__('_ctypes')", "import"),
        ("f.__code__.replace(co_code=b'')", "object.__getattr__"),
        ("f.__code__", "object.__getattr__"),
        ("input()", "builtins.input"),
    ],
)
def test_what_reaches_beyond_the_program_ends_it(what, event):
    program = f"{OS}def f():\n    try: {what}\n    except BaseException: pass\n"
    assert error(program) == f"it was refused: {event}"


@pytest.mark.parametrize("path", ["{0}/seen", "../{1}/seen", "./seen", "..", "."])
@pytest.mark.parametrize("mode", ["r", "w"])
def test_no_file_outside_of_the_folder_is_read_or_written(tmp_path, path, mode):
    seen = tmp_path / "seen"
    seen.write_text("as it was")
    told = path.format(tmp_path, os.path.relpath(tmp_path, tempfile.gettempdir()))
    for kind in ("", ".encode()"):
        program = f"def f(): return open({told!r}{kind}, {mode!r}).write('other')"
        assert error(program) == "it was refused: open"
    assert seen.read_text() == "as it was"


def test_files_of_the_folder_can_be_used_within_limits_and_are_removed(
    tmp_path, monkeypatch
):
    program = (
        "def f(text, times):\n"
        "    for n in range(times):\n"
        "        with open(f'note{n}', 'w') as out: out.write(text)\n"
        "    return open('note0').read()\n"
    )
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert sandbox.passes(program, [Call("f", ("seen", 2))], ["seen"])
    assert error(program, "f", "x" * 5_000, 1, file_bytes=4_096) == (
        "call 1 raised OSError"
    )
    assert error(program, "f", "x", 99) == "it was refused: open"
    assert not [*tmp_path.iterdir()]


def test_what_is_printed_is_dropped_and_what_is_returned_is_bounded():
    prints = "def f(n):\n    for _ in range(n): print('x' * 99_999)\n    return n\n"
    assert sandbox.passes(prints, [Call("f", (200,))], [200])
    returns = "def f(n): return 'x' * n"
    assert error(returns, "f", 900, report_bytes=1_000) is None
    assert error(returns, "f", 1_000, report_bytes=1_000) == (
        "it reported more than 1000 bytes"
    )


@pytest.mark.parametrize(
    ("leave", "said"),
    [
        ("raise SystemExit(0)", "the program raised SystemExit"),
        ("os['_exit'](0)", "it ended without a report, by itself or at a limit"),
        ("os['abort']()", "it ended without a report, by itself or at a limit"),
    ],
)
def test_ending_early_solves_nothing(leave, said):
    assert error(f"{OS}def f(): return 1\n{leave}") == said


def test_changed_builtins_and_reports_change_no_verdict():
    call = [Call("f", (3,))]
    changed = (
        f"{OS}def f(x): return x\n"
        "all = len = sorted = lambda *_: True\n"
        "own = print.__self__\n"
        "own.len = own.type = own.str = own.isinstance = lambda *_: True\n"
        "os['write'] = os['_exit'] = lambda *_: None\n"
    )
    assert not sandbox.passes(changed, call, [9])
    assert error(f"{changed}open('/etc/passwd')") == "it was refused: open"
    for fd in range(3, 8):
        forged = f"{OS}def f(x):\n    os['write']({fd}, %s)\n    os['_exit'](0)\n"
        assert not sandbox.passes(forged % "b'{\"values\": [8]}'", call, [9])
        for said in ("b'[' * 9_000", "b'{\"values\": [NaN]}'", "b'{\"values\": 9}'"):
            assert not sandbox.passes(forged % said, call, [9])


@pytest.mark.parametrize(
    "value",
    ["{1}", "f", "float('nan')", "1j", "b'x'", "object()", "[[]] * 2 + [{(1,): 2}]"],
)
def test_a_value_that_is_no_json_is_an_error(value):
    assert error(f"def f(): return {value}").startswith("call 1 returned no JSON")


def test_a_program_that_is_none_and_a_function_that_is_not_there_are_errors():
    assert error("def f(:") == "the program raised SyntaxError"
    assert error("\ud800") == "the program raised UnicodeEncodeError"
    assert error("return 1") == "the program raised SyntaxError"
    assert error("def g(): return 1") == "call 1 raised KeyError"
    assert error("def f(): return 1", "f", 2) == "call 1 raised TypeError"


def test_a_program_sees_neither_environment_nor_packages(monkeypatch):
    monkeypatch.setenv("SECRET", "seen")
    program = f"{OS}def f(): return [*os['environ']], 'site' in os['sys'].modules"
    environment, site = sandbox.run(program, [Call("f", ())]).values[0]
    assert "SECRET" not in environment
    assert not site


def test_every_process_of_the_group_is_killed(tmp_path, monkeypatch):
    held = tmp_path / "held"
    os.mkfifo(held)
    child = tmp_path / "child.py"
    child.write_text(
        "import os\n"
        "forked = os.fork()\n"
        f"opened = os.open({str(held)!r}, os.O_WRONLY)\n"
        "if forked: os.write(1, b'ready\\n')\n"
        "while True: pass\n"
    )
    monkeypatch.setattr(sandbox, "CHILD", child)
    reader = os.open(held, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    assert error("", wall_seconds=0.5) == "it ran for more than 0.5 seconds"
    assert os.read(reader, 1) == b""  # which it is when no process holds it any more
    os.close(reader)


def test_a_python_that_does_not_begin_is_no_fault_of_the_program(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "CHILD", tmp_path / "none.py")
    with pytest.raises(RuntimeError, match=r"must begin to run none\.py"):
        error("def f(): return 1")


def test_limits_and_calls_that_say_nothing_are_refused():
    with pytest.raises(ValueError, match="cpu_seconds must be above 0, got 0"):
        Limits(cpu_seconds=0)
    with pytest.raises(ValueError, match="got 0 and 0"):
        sandbox.passes("", [], [])
    with pytest.raises(ValueError, match="got 1 and 2"):
        sandbox.passes("", [Call("f", ())], [1, 2])
    with pytest.raises(TypeError, match="not JSON serializable"):
        sandbox.run("", [Call("f", ({1},))])
