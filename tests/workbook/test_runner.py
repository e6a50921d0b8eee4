"""The runner on small notebooks: verdicts, limits, resuming, killing, writing."""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from nas_core.workbook import BookError, notebooks, runner
from nas_core.workbook.book import Book
from nas_core.workbook.cli import main
from tests.workbook.books import code, make_book

GOOD, BAD, ENDLESS, HUNGRY, SLEEPY = "01_good", "02_bad", "03_endless", "04_hungry", "05_sleepy"


def touch(name: str) -> str:
    """Source that leaves a trace of every execution beside the notebook."""
    return f"from pathlib import Path\nwith Path('{name}.log').open('a') as f:\n    f.write('x')"


@pytest.fixture
def book(tmp_path, monkeypatch):
    root = make_book(
        tmp_path / "book",
        {
            GOOD: [code(touch("good")), code("print(SEED + STEPS, PROFILE)")],
            BAD: [code("print('before')"), code("1 / 0"), code("print('never')")],
            ENDLESS: [code(touch("endless")), code("while True: pass")],
            SLEEPY: [code("import time\ntime.sleep(10_000)")],
            HUNGRY: [
                code(
                    "import subprocess, sys\n"
                    "grab = 'b = bytearray(150_000_000); import time; time.sleep(1.5)'\n"
                    "subprocess.run([sys.executable, '-c', grab], check=True)"
                )
            ],
        },
    )
    monkeypatch.chdir(root)
    monkeypatch.delenv("NAS_BOOK", raising=False)
    return root


def executions(book, name="good") -> int:
    log = book / "notebooks" / f"{name}.log"
    return len(log.read_text()) if log.exists() else 0


def summary_of(book) -> list[dict[str, str]]:
    """The rows of the table that a run ends with."""
    lines = (book / "build" / "summary.md").read_text().split("\n\n")[0].splitlines()
    names, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(names, row, strict=True)) for row in rows]


def test_a_failing_chapter_does_not_stop_the_others(book, capsys):
    assert main(["run", "2", "1"]) == 1
    printed = capsys.readouterr().out
    rows = summary_of(book)
    assert [(r["chapter"], r["verdict"]) for r in rows] == [(BAD, "FAILED"), (GOOD, "passed")]
    assert rows[0]["message"] == "cell 3: ZeroDivisionError: division by zero"
    assert rows[0]["cells"] == "3/4"
    assert "1 of 2 passed" in printed
    assert (book / "build" / "summary.md").read_text().strip() in printed
    executed = notebooks.read(book / "build" / "notebooks" / f"{BAD}.ipynb")
    assert "before" in executed.cells[2].outputs[0].text  # what came before the failure is kept
    assert executions(book) == 1
    assert [p.stem for p in (book / "build" / "runs").glob("*.json")] == [GOOD]  # 2 runs again


def test_cells_run_in_the_notebooks_folder_with_one_thread(book):
    nb = notebooks.read(book / "notebooks" / f"{GOOD}.ipynb")
    nb.cells.append(code("import os\nprint(os.getcwd(), os.environ['OMP_NUM_THREADS'])"))
    notebooks.write(nb, book / "notebooks" / f"{GOOD}.ipynb")
    assert main(["run", "1"]) == 0
    executed = notebooks.read(book / "build" / "notebooks" / f"{GOOD}.ipynb")
    assert executed.cells[-1].outputs[0].text.split() == [str(book / "notebooks"), "1"]


def test_time_limit_ends_the_kernel_and_names_the_cell(book):
    job = runner.Job(Book.load(book).find(3), limit=15)
    (outcome,) = runner.run([job])
    assert outcome.verdict == "TIMEOUT"
    assert outcome.message == "time limit of 15 s of processor time reached in cell 3 of 3"
    assert not kernels_of(book)
    assert not job.record.exists()


def test_waiting_takes_no_processor_time_but_ends_too(book, monkeypatch):
    """A chapter on a busy machine is not stopped by the clock; one that hangs is, much later."""
    monkeypatch.setattr(runner, "WALL", 0.5)
    (outcome,) = runner.run([runner.Job(Book.load(book).find(5), limit=40)])
    assert outcome.verdict == "TIMEOUT"
    assert "time limit of 20 s of waiting reached in cell" in outcome.message
    assert not kernels_of(book)


def test_processor_time_of_the_whole_tree_counts():
    grandchild = "import time\nwhile time.process_time() < 1.5: pass"
    child = (
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {grandchild!r}])\ninput()"
    )
    process = subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE)
    try:
        wait_for(lambda: runner._measure(process.pid)[0] >= 1.5)
    finally:
        process.kill()
        process.communicate()
    assert runner._measure(process.pid) == (0.0, 0)


def test_a_worker_that_dies_early_costs_its_own_chapter_only(book, monkeypatch):
    """Before it has read its job, say."""
    popen = subprocess.Popen

    def dies(command, **options):
        if BAD in command[3]:
            command = [sys.executable, "-c", "import sys; sys.exit('no memory')"]
        return popen(command, **options)

    monkeypatch.setattr(subprocess, "Popen", dies)
    bad, good = runner.run([runner.Job(Book.load(book).find(n)) for n in (2, 1)])
    assert bad.verdict == "FAILED" and "the worker died" in bad.message
    assert "no memory" in bad.message
    assert good.verdict == "passed"


def test_a_full_disk_costs_its_own_chapter_only(book, monkeypatch):
    write = notebooks.write

    def fails(nb, path):
        if BAD in str(path):
            raise OSError(28, "No space left on device")
        write(nb, path)

    monkeypatch.setattr(notebooks, "write", fails)
    bad, good = runner.run([runner.Job(Book.load(book).find(n)) for n in (2, 1)])
    assert bad.verdict == "FAILED" and "No space left" in bad.message
    assert good.verdict == "passed"


def test_the_kernel_is_this_interpreter_whatever_else_is_called_python3(
    book, tmp_path, monkeypatch
):
    other = tmp_path / "other" / "kernels" / "python3" / "kernel.json"
    other.parent.mkdir(parents=True)
    argv = ["/bin/false", "{connection_file}"]
    words = {"argv": argv, "display_name": "Python 3", "language": "python"}
    other.write_text(json.dumps(words))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "other"))
    path = book / "notebooks" / f"{GOOD}.ipynb"
    nb = notebooks.read(path)
    nb.cells.append(code("import sys\nprint(sys.executable)"))
    notebooks.write(nb, path)
    (outcome,) = runner.run([job := runner.Job(Book.load(book).find(1))])
    assert outcome.good, outcome.message
    assert notebooks.read(job.output).cells[-1].outputs[0].text.strip() == sys.executable


@pytest.mark.parametrize(
    "name",
    [
        "data/reference/table.csv",
        "data/tables/cells.csv.xz",
        f"data/results/{GOOD}/r.json",
        "notebooks/checks/ch01.py",
    ],
)
def test_the_key_of_a_run_counts_what_its_cells_read(book, name):
    job = runner.Job(Book.load(book).find(1))
    keys = [job.key(), job.key()]
    (book / name).parent.mkdir(parents=True, exist_ok=True)
    for text in ("1", "2"):
        (book / name).write_text(text)
        keys.append(job.key())
    assert keys[0] == keys[1] and len(set(keys)) == 3


def test_the_key_of_a_run_counts_the_style_of_views(book, tmp_path, monkeypatch):
    library = tmp_path / "nas_core" / "workbook"
    library.mkdir(parents=True)
    monkeypatch.setattr(runner, "__file__", str(library / "runner.py"))
    job, keys = runner.Job(Book.load(book).find(1)), set()
    for colour in ("red", "blue"):
        (tmp_path / "nas_core" / "view.css").write_text(colour)
        keys.add(job.key())
    assert len(keys) == 2


def test_limit_of_meta_yaml(tmp_path):
    root = make_book(tmp_path / "b", {GOOD: []}, **{GOOD: {"limits": {"smoke": 7}}})
    chapter = Book.load(root).find(1)
    assert runner.Job(chapter).seconds == 7
    assert runner.Job(chapter, limit=3).seconds == 3
    assert runner.Job(chapter, profile="study").seconds == runner.LIMITS["study"]


def test_peak_memory_counts_what_the_kernel_starts(book):
    small, hungry = runner.run([runner.Job(Book.load(book).find(n)) for n in (1, 4)])
    assert hungry.peak_mb - small.peak_mb > 120  # 143 MiB less what differs between kernels


def test_parameters_are_injected_and_keep_their_own_files(book):
    assert main(["run", "1", "-p", "SEED", "39", "--profile", "study"]) == 0
    (path,) = (book / "build" / "notebooks").glob(f"{GOOD}.study.*.ipynb")
    executed = notebooks.read(path)
    assert executed.cells[-1].outputs[0].text == "42 study\n"
    assert "papermill" not in executed.metadata


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["1", "-p", "NOTHING", "1"], "PROFILE, SEED, DEVICE, STEPS"),
        (["1", "-p", "STEPS", "many"], "does not fit the default 3"),
        (["1", "-p", "STEPS", "True"], "does not fit the default 3"),
        (["1", "-p", "PROFILE", "study"], "--profile"),
        (["99"], f"{GOOD}, {BAD}"),
        (["0"], "unknown"),
        (["_"], "ambiguous"),
        (["1", "--profile", "quick"], "smoke, study, paper"),
        (["1", "--profile", "paper"], "no profile 'paper'"),
        (["1", "--limit", "-1"], "positive"),
        (["1", "--jobs", "-2"], "1 or more"),
        (["1", "--write", "-p", "SEED", "1"], "--write"),
    ],
)
def test_wrong_input_is_refused_by_name(book, capsys, arguments, named):
    assert main(["run", *arguments]) == 2
    assert named in capsys.readouterr().err
    assert executions(book) == 0


def test_finished_chapters_are_kept_until_something_changes(book, capsys):
    assert main(["run", "1"]) == 0
    assert main(["run", "01_good"]) == 0
    assert executions(book) == 1
    assert "kept" in capsys.readouterr().out
    assert main(["run", "1", "-p", "SEED", "1"]) == 0  # other parameters are another run
    assert executions(book) == 2
    path = book / "notebooks" / f"{GOOD}.ipynb"
    nb = notebooks.read(path)
    nb.cells.append(code("print('one more')"))
    notebooks.write(nb, path)
    assert main(["run", "1"]) == 0
    assert executions(book) == 3


def test_dry_run_executes_nothing(book, capsys):
    assert main(["run", "1", "--profile", "study", "-p", "SEED", "3", "--dry-run"]) == 0
    assert "'SEED': 3" in capsys.readouterr().out
    assert executions(book) == 0


def kernels_of(book) -> list[psutil.Process]:
    """Processes that work in this book's folder (kernels have it as working directory)."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd().startswith(str(book)) and "ipykernel" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def start(book, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "nas_core.workbook", "run", *arguments],
        cwd=book,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A background job of a shell ignores Ctrl-C, and so would everything it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for(condition, seconds: float = 1500) -> None:
    """Waits for an event, however slow the machine is; the deadline is for what never comes."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def test_killed_run_leaves_no_kernel_and_resumes(book, capsys):
    process = start(book, "1", "3", "--jobs", "1")
    wait_for(lambda: executions(book, "endless"))  # so chapter 1 is finished
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not kernels_of(book))
    assert main(["run", "1", "3", "--jobs", "1", "--limit", "15"]) == 1
    assert executions(book) == 1
    rows = summary_of(book)
    assert [r["verdict"] for r in rows] == ["kept", "TIMEOUT"]


def test_ctrl_c_keeps_what_is_finished(book):
    process = start(book, "1", "3", "--jobs", "1")
    wait_for(lambda: executions(book, "endless"))
    os.kill(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=1500)
    assert process.returncode == 130
    assert "stopped" in printed and "1 of 2 passed" in printed
    assert not kernels_of(book)
    assert json.loads((book / "build" / "runs" / f"{GOOD}.json").read_text())


def test_a_kernel_that_dies_is_a_failure(book):
    path = book / "notebooks" / f"{GOOD}.ipynb"
    nb = notebooks.read(path)
    nb.cells.append(code("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"))
    notebooks.write(nb, path)
    (outcome,) = runner.run([runner.Job(Book.load(book).find(1))])
    assert outcome.verdict == "FAILED"
    assert "DeadKernelError" in outcome.message


def test_parameters_cell_must_be_literal():
    def parameters(source):
        return notebooks.parameters(nbformat.v4.new_notebook(cells=[code(source, "parameters")]))

    assert parameters("A = -1\nB = [1, 'x']\nC = None") == {"A": -1, "B": [1, "x"], "C": None}
    for source in ("A = 1 + x", "import os", "A: int = f()", "A = B = 1", "A.b = 1"):
        with pytest.raises(BookError, match="only NAME = literal"):
            parameters(source)
