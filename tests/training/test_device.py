import pytest
import torch

from nas_core.training import (
    describe_device,
    one_thread,
    pick_device,
    progress_bar,
    seed_everything,
    versions,
)


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device(torch.device("cpu")).type == "cpu"


def test_absent_and_unknown_devices_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("cuda:0").index == 0
    with pytest.raises(ValueError, match=r"'cuda:3' asked for, but 1 CUDA devices"):
        pick_device("cuda:3")
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        pick_device("gpu")


def test_description_and_threads():
    one_thread()
    assert torch.get_num_threads() == 1
    assert describe_device("cpu").startswith("cpu: ") and "1 of" in describe_device("cpu")


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_out_of_range_are_refused(seed):
    with pytest.raises(ValueError, match="it must be in 0"):
        seed_everything(seed)


def test_versions_name_what_results_depend_on():
    assert versions()["torch"] == torch.__version__
    assert set(versions()) >= {
        "python", "torch", "torchvision", "numpy", "scipy", "scikit-learn", "optuna",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("show", "wish", "terminal", "visible"),
    [
        (True, "", True, True),
        (True, "", False, False),  # logs and executed notebooks stay clean
        (False, "1", True, False),
        ("label", "1", False, True),
        (True, "0", True, False),
    ],
)
def test_progress_is_shown_on_terminals_and_never_on_stderr(
    monkeypatch, capsys, show, wish, terminal, visible
):
    monkeypatch.setenv("NAS_PROGRESS", wish)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    with progress_bar(3, show) as bar:
        bar.set_postfix({"loss": "1.0"}, refresh=False)
        bar.update(3)
    out, err = capsys.readouterr()
    assert err == ""
    assert bool(out.strip()) == visible
    if isinstance(show, str):
        assert "label" in out
