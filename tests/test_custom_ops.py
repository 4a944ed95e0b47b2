"""Building native libraries: once, whole or not at all, never twice in a process, and one clear line where it cannot be done."""

import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types

import pytest

from torch_utils import build_lock, custom_ops, toolchain
from torch_utils.build_lock import BuildLock
from torch_utils.toolchain import BuildError

ROOT = pathlib.Path(__file__).parent.parent
EXPORT = 'extern "C" __attribute__((visibility("default")))'
GOOD = f"{EXPORT} int abi_version() {{ return %d; }}\n{EXPORT} int answer() {{ return %d; }}\n"
# What a compiler does here before it does its work: write down that it was called, and wait for a minute at most while there is a certain file.
BEFORE = """#!/bin/sh
echo "$@" >> {folder}/calls
for _ in $(seq 1200); do [ -e {folder}/slow ] || break; sleep 0.05; done
"""
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, toolchain.COMPILERS)), reason="no C++ compiler")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A cache, a temporary folder and one source file of our own; nothing has been tried yet."""
    (tmp_path / "src").mkdir()
    (tmp_path / "tmp").mkdir()
    (tmp_path / "src" / "ops.cpp").write_text(GOOD % (custom_ops.ABI_VERSION, 42))
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(custom_ops, "SOURCES", tmp_path / "src")
    monkeypatch.setattr(custom_ops, "_outcomes", {})
    return tmp_path


def script(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def compiler(place, monkeypatch):
    """A compiler that counts how often it is called, in place/calls, and waits while there is place/slow."""
    real = next(filter(None, map(shutil.which, toolchain.COMPILERS)))
    monkeypatch.setenv("CXX", script(place / "compiler", BEFORE.format(folder=place) + f'exec {real} "$@"\n'))


def calls(place):
    return len((place / "calls").read_text().splitlines()) if (place / "calls").exists() else 0


def refused(**kwargs):
    """The one line of the error."""
    with pytest.raises(BuildError) as caught:
        custom_ops.load("cpu", **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@needs_compiler
def test_a_library_is_built_once_and_loaded_ever_after(place, compiler, capfd):
    assert custom_ops.load("cpu").answer() == 42
    assert capfd.readouterr().err.count("Building native ops for cpu") == 1
    built = calls(place)
    assert built == 2  # compile, link
    assert custom_ops.load("cpu") is custom_ops.load("cpu")
    custom_ops.forget()
    assert custom_ops.load("cpu").answer() == 42
    assert calls(place) == built and capfd.readouterr().err == ""
    assert sorted(p.suffix for p in (place / "cache" / "ops").iterdir()) == [""]  # no lock, no workshop, no failure left


@needs_compiler
def test_workshops_that_nobody_has_used_for_a_day_are_removed_by_the_next_build(place, compiler):
    cache, key = place / "cache" / "ops", custom_ops.recipe("cpu").key
    for name, age in ((f"{key}.old.tmp", 2 * 86400), (f"{key}.new.tmp", 60), ("other.old.tmp", 2 * 86400)):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (time.time() - age,) * 2)
    custom_ops.load("cpu")
    assert sorted(path.name for path in cache.glob("*.tmp")) == sorted([f"{key}.new.tmp", "other.old.tmp"])


@needs_compiler
def test_another_source_flag_compiler_or_processor_is_another_library(place, monkeypatch):
    keys = {custom_ops.recipe("cpu").key, custom_ops.recipe("cpu").key}
    assert len(keys) == 1
    (place / "src" / "unrelated.cu").write_text("")
    (place / "src" / "notes.txt").write_text("")
    keys.add(custom_ops.recipe("cpu").key)
    assert len(keys) == 1
    (place / "src" / "header.h").write_text("")
    keys.add(custom_ops.recipe("cpu").key)
    monkeypatch.setattr(toolchain, "CPU_FLAGS", (*toolchain.CPU_FLAGS, "-g"))
    keys.add(custom_ops.recipe("cpu").key)
    monkeypatch.setattr(toolchain, "processor", lambda: "another")
    keys.add(custom_ops.recipe("cpu").key)
    monkeypatch.setenv("CXX", script(place / "compiler", "#!/bin/sh\n"))
    keys.add(custom_ops.recipe("cpu").key)
    script(place / "compiler", "#!/bin/sh\n# updated\n")
    keys.add(custom_ops.recipe("cpu").key)
    assert len(keys) == 6


@needs_compiler
def test_folders_with_odd_names_are_no_matter(place, monkeypatch):
    odd = place / "a $HOME; 'b' c:d"
    odd.mkdir()
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(odd / "cache"))
    real = next(filter(None, map(shutil.which, toolchain.COMPILERS)))
    monkeypatch.setenv("CXX", shlex.quote(script(odd / "c++", f'#!/bin/sh\nexec {real} "$@"\n')) + " -DUNUSED='$x y'")
    assert custom_ops.load("cpu").answer() == 42


def test_without_a_compiler_the_line_says_what_to_install(place, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(place))
    assert "no C++ compiler" in refused() and "apt install g++" in refused()


def test_a_compiler_that_is_named_must_be_there(place, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    assert "'no-such-compiler'" in refused() and "CXX" in refused()


FAILURES = {
    "In file included from ops.cpp:1:\nops.cpp:1:10: fatal error: omp.h: No such file\n": "fatal error: omp.h",
    "note: hello\nops.cpp:3:1: error: what is this\nops.cpp:4:1: error: and this\n": "ops.cpp:3:1: error: what is this",
    "/usr/bin/ld: cannot find -lgomp\ncollect2: error: ld returned 1 exit status\n": "cannot find -lgomp",
    "c++: error: unrecognized command line option '-std=c++17'\n": "'-std=c++17'",
    "out of luck\n": "out of luck",
}


@pytest.mark.parametrize("output", FAILURES)
def test_of_a_failing_build_the_first_error_is_told_and_it_is_not_repeated(place, monkeypatch, output):
    (place / "output").write_text(output)
    monkeypatch.setenv("CXX", script(place / "failing", f"#!/bin/sh\necho x >> {place}/calls\ncat {place}/output >&2\nexit 1\n"))
    message = refused()
    assert FAILURES[output] in message and "and this" not in message and "compiler with OpenMP" in message
    assert refused() == message and calls(place) == 1
    assert sorted(p.suffix for p in (place / "cache" / "ops").iterdir()) == [".failed"]


@needs_compiler
def test_a_mistake_in_the_source_is_told_with_its_line(place):
    (place / "src" / "ops.cpp").write_text("int x = 1;\nint y = unknown;\n")
    assert "ops.cpp:2:9: error" in refused()


@needs_compiler
@pytest.mark.parametrize("obstacle", ["the folder cannot be made", "nothing can be written into it"])
def test_a_cache_that_cannot_be_written_is_replaced_by_a_private_folder(place, monkeypatch, capfd, obstacle):
    if obstacle == "the folder cannot be made":
        (place / "cache").write_text("a file")
    else:
        acquire = BuildLock.acquire

        def refuse(lock):
            if place / "cache" in lock.path.parents:
                raise PermissionError(13, "Permission denied")
            return acquire(lock)

        monkeypatch.setattr(BuildLock, "acquire", refuse)
    assert custom_ops.load("cpu").answer() == 42
    told = capfd.readouterr().err
    assert told.count("The cache cannot be written") == 1 and str(place / "tmp") in told
    custom_ops.forget()
    assert custom_ops.load("cpu").answer() == 42
    assert capfd.readouterr().err == ""  # found where it was put


def test_without_a_folder_to_write_there_is_one_line(place, monkeypatch):
    def refuse(lock):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(BuildLock, "acquire", refuse)
    assert f"neither the cache nor {place / 'tmp'}" in (message := refused()) and "(No space left on device)" in message


def test_a_machine_without_any_temporary_folder_is_told_in_one_line(place, monkeypatch):
    """As a container whose disks are all read only. What is a BuildError here means reference ops under --ops=auto."""

    def refuse():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    (place / "cache").write_text("a file")
    monkeypatch.setattr("tempfile.gettempdir", refuse)
    assert "neither the cache nor a temporary folder can be written (No usable temporary directory" in (message := refused())
    assert "DNNLIB_CACHE_DIR" in message


@needs_compiler
def test_a_temporary_folder_that_others_can_write_is_not_trusted(place):
    (place / "cache").write_text("a file")
    (place / "tmp" / f"dnnlib-ops-{os.getuid()}").mkdir()
    (place / "tmp" / f"dnnlib-ops-{os.getuid()}").chmod(0o777)
    assert "open to other users" in refused()


@needs_compiler
def test_a_library_of_another_interface_is_never_used(place):
    (place / "src" / "ops.cpp").write_text(GOOD % (custom_ops.ABI_VERSION + 1, 42))
    assert f"version {custom_ops.ABI_VERSION + 1} instead of {custom_ops.ABI_VERSION}" in refused()


@needs_compiler
@pytest.mark.parametrize("damage", [b"", b"\x7fELF and then nothing"])
def test_a_damaged_library_in_the_cache_is_built_again(place, capfd, damage):
    made = custom_ops.recipe("cpu")
    path = place / "cache" / "ops" / made.key / made.library
    path.parent.mkdir(parents=True)
    path.write_bytes(damage)
    assert custom_ops.load("cpu").answer() == 42
    assert "is damaged and is built again" in capfd.readouterr().err


@needs_compiler
def test_a_library_that_another_process_has_built_again_is_kept(place):
    """Ranks that find the same one damaged take turns."""
    custom_ops.load("cpu")
    made = custom_ops.recipe("cpu")
    path = custom_ops.find_built(made)
    before = path.stat().st_ino
    assert custom_ops._build(made, damaged=path) == path and path.stat().st_ino == before


@needs_compiler
def test_where_building_is_not_allowed_only_a_built_library_is_loaded(place):
    assert "not been built" in refused(build=False)
    assert not list((place / "tmp").iterdir())  # nothing is made merely by looking
    custom_ops.load("cpu")
    custom_ops.forget()
    assert custom_ops.load("cpu", build=False).answer() == 42


CHILD = """
import pathlib, sys
from torch_utils import custom_ops
custom_ops.SOURCES = pathlib.Path(sys.argv[1])
try:
    print(custom_ops.load("cpu").answer())
except custom_ops.BuildError as error:
    print(error)
"""


def start_child(place):
    command = [sys.executable, "-c", CHILD, str(place / "src")]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(condition):
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def compile_once_waited_for(place, monkeypatch):
    """The compiler of another process goes on when this one begins to wait for the lock, and has said so."""

    def sleep(seconds):
        (place / "slow").unlink(missing_ok=True)
        time.sleep(seconds)

    monkeypatch.setattr(build_lock, "time", types.SimpleNamespace(time=time.time, sleep=sleep))
    monkeypatch.setattr(build_lock, "MESSAGE_SECONDS", -1)


@needs_compiler
def test_of_two_processes_one_builds_and_the_other_waits(place, compiler, monkeypatch, capfd):
    (place / "slow").touch()
    child = start_child(place)
    wait_for(lambda: calls(place) == 1)
    compile_once_waited_for(place, monkeypatch)
    assert custom_ops.load("cpu").answer() == 42
    out, err = child.communicate(timeout=60)
    assert out.strip() == "42" and "Building native ops" in err
    assert calls(place) == 2  # one to compile, one to link
    told = capfd.readouterr().err
    assert f"Waiting for process {child.pid} on {socket.gethostname()}" in told and "Building" not in told


def test_those_who_waited_for_a_build_that_failed_do_not_repeat_it(place, monkeypatch):
    monkeypatch.setenv("CXX", script(place / "failing", BEFORE.format(folder=place) + "echo 'error: no luck' >&2\nexit 1\n"))
    (place / "slow").touch()
    child = start_child(place)
    wait_for(lambda: calls(place) == 1)
    compile_once_waited_for(place, monkeypatch)
    assert "error: no luck" in refused()
    assert "error: no luck" in child.communicate(timeout=60)[0]
    assert calls(place) == 1


@needs_compiler
def test_a_build_that_was_killed_leaves_nothing_that_counts(place, compiler, capfd):
    (place / "slow").touch()
    child = start_child(place)
    try:
        wait_for(lambda: calls(place) == 1)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert any(p.suffix == ".lock" for p in (place / "cache" / "ops").iterdir())
        (place / "calls").unlink()
        with pytest.raises(BuildError, match="not been built"):
            custom_ops.load("cpu", build=False)
        # The compiler that the dead one has left goes on only when what it wrote is removed and this process's has begun.
        helper = threading.Thread(target=lambda: (wait_for(lambda: calls(place) == 1), (place / "slow").unlink()))
        helper.start()
        assert custom_ops.load("cpu").answer() == 42
        helper.join()
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.stdout.close()
        child.stderr.close()
    assert sorted(p.suffix for p in (place / "cache" / "ops").iterdir()) == [""]


def test_importing_the_ops_builds_nothing(place):
    code = "import torch_utils.layers, torch_utils.ops.native, sys; sys.exit('torch_utils.ops.native' not in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    assert not (place / "cache").exists()


@pytest.mark.parametrize(
    ("wanted", "known", "flags"),
    [
        ([90], [80, 90], ["-gencode=arch=compute_90,code=sm_90"]),
        ([120], [80, 90], ["-gencode=arch=compute_90,code=[sm_90,compute_90]"]),
        ([89, 80, 80], [80, 86], ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_86,code=[sm_86,compute_86]"]),
    ],
)
def test_gpus_newer_than_nvcc_get_portable_code(wanted, known, flags):
    assert toolchain.architecture_flags(wanted, known) == flags


def test_behind_a_launcher_the_compiler_counts(tmp_path, monkeypatch):
    """As CXX="ccache g++" names it: nvcc takes no launcher, and an update of the compiler makes other libraries."""
    ccache, compiler, nvcc = (script(tmp_path / name, "#!/bin/sh\n") for name in ("ccache", "g++", "nvcc"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: toolchain.Tool((nvcc,)))
    for named in ("g++", "ccache g++", f"{ccache} {compiler} -m64", "g++ -m64 -I ccache"):
        monkeypatch.setenv("CXX", named)
        command, identity = toolchain.compile_command("cuda"), toolchain.tool_identity("cuda")
        assert command[command.index("-ccbin") + 1] == compiler
        with open(compiler, "a") as handle:
            handle.write("# updated\n")
        assert toolchain.tool_identity("cuda") != identity


@pytest.mark.parametrize("variable", ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN"])
def test_what_nvcc_reads_from_the_environment_makes_another_library(tmp_path, monkeypatch, variable):
    nvcc = script(tmp_path / "nvcc", "#!/bin/sh\n")
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: toolchain.Tool((nvcc,)))
    monkeypatch.delenv(variable, raising=False)
    identities = {toolchain.tool_identity("cuda")}
    for value in ("-G", "-lineinfo"):
        monkeypatch.setenv(variable, value)
        identities.add(toolchain.tool_identity("cuda"))
    assert len(identities) == 3


def test_gpus_older_than_nvcc_are_refused():
    with pytest.raises(BuildError, match="sm_60, and nvcc makes code only from sm_75 on"):
        toolchain.architecture_flags([60], [75, 80])


def test_nvcc_is_looked_for_where_the_user_says(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(BuildError, match=r"CUDA_HOME is .*, which has no bin/nvcc"):
        toolchain.find_nvcc()
    (tmp_path / "bin").mkdir()
    script(tmp_path / "bin" / "nvcc", "#!/bin/sh\necho compute_80; echo compute_100; echo compute_90\n")
    assert toolchain.find_nvcc().path == str(tmp_path / "bin" / "nvcc")
    assert toolchain.known_architectures(toolchain.find_nvcc()) == [80, 90, 100]
