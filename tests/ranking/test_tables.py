"""Loaders: on small files in every run, on the real ones where they are."""

import math

import numpy as np
import pandas as pd
import pytest

from nas_core.data import DataNotFound
from nas_core.data.dataset import CorruptData
from nas_core.ranking import metrics, tables
from nas_core.ranking import spaces as sp


@pytest.fixture
def real():
    """Skips, saying which file is missing, where the published tables are not in the data root."""
    try:
        for name in tables.SOURCES:
            tables.find(name)
    except DataNotFound as error:
        pytest.skip(str(error))


def test_a_missing_file_names_its_source(tmp_path):
    for name in tables.SOURCES:
        with pytest.raises(DataNotFound, match=f"{name} is not in .*by hand.*github.com"):
            tables.find(name, tmp_path)
    (tmp_path / "nas").mkdir()
    (tmp_path / "nas" / "rnn32_ptb_ranking.csv").write_text("rank\n1\n")
    with pytest.raises(CorruptData, match=r"lacks the columns \['op_1'"):
        tables.rnn32_order(tmp_path)


def test_macro_in_small(tmp_path):
    frame = {"arch": ["00000000", "01200000"], "test_acc_1": [40, 90], "test_acc_2": [50, 92]}
    frame |= {"test_acc_3": [60, 94], "params": [10, 20], "flops": [100, 300]}
    pd.DataFrame(frame).to_csv(tmp_path / "nasbench_macro_cifar10.csv.xz", index=False)
    table = tables.nasbench_macro(tmp_path)
    assert table.cells[1] == (0, 1, 2, 0, 0, 0, 0, 0) and len(table) == 2
    assert table.frame.accuracy.tolist() == pytest.approx([0.5, 0.92])
    assert table.frame.macs.tolist() == [100, 300]


def small_nb101(path, digest):
    rows = [
        {"space": "4V9E", "hash": digest, "adjacency_upper": "110101", "ops": "-1|2|2|-2",
         "repeat": r, "params": 1756298, "epochs": e, "train_acc": 0.1, "val_acc": 0.2 + 0.1 * r,
         "test_acc": 0.3, "train_time_s": 10.0}
        for r in (1, 2) for e in (1, 4)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(path / "nasbench101_4v5v_4epochs_ecnas.csv.xz", index=False)


def test_nasbench101_in_small(tmp_path):
    small_nb101(tmp_path, "001a6fcc8b38cbc515be788a86bdc804")  # a published hash
    table = tables.nasbench101_small(4, root=tmp_path)
    assert len(table) == 1 and table.frame.val[0] == pytest.approx(0.35)
    assert table.cells == [(1, 1, 0, 1, 0, 1, 2, 2)]  # 0→1, 0→2, 1→2, 2→3
    small_nb101(tmp_path, "0" * 32)
    with pytest.raises(CorruptData, match="not the hash of its graph"):
        tables.nasbench101_small(4, root=tmp_path)
    with pytest.raises(ValueError, match="vertices is 6"):
        tables.nasbench101_small(6, root=tmp_path)


def test_rank_history_by_hand():
    """Ten runs; the last epoch is the final order, the first one its reverse."""
    final = np.arange(10.0)
    half = final.copy()
    half[[8, 9]] = half[[9, 8]]
    table = tables.rank_history(np.stack([-final, half, final], 1), final)
    assert table.tau.tolist() == pytest.approx([-1, 43 / 45, 1])
    assert table.found.tolist() == [0, 0, 1]
    assert table.pairs.tolist() == pytest.approx([1, 1 / 45, 0])


# ---------------------------------------------------------------- the published files


def test_real_nasbench101(real):
    counts = {}
    for vertices in (4, 5):
        table = tables.nasbench101_small(vertices)
        counts[vertices] = len(table)
        assert sorted(table.cells) == sp.NB101Space(vertices).distinct()
    assert counts == {4: 91, 5: 2_532}
    known = tables.nasbench101_known()
    four = tables.nasbench101_small(4).frame.set_index("hash")
    assert len(known) == 10 and set(known["hash"]) <= set(four.index)
    assert known["rank"].tolist() == list(range(91, 81, -1))
    # Ten worst after 108 epochs: after 4 epochs they are in the lower half as well.
    assert (four.val.rank()[known["hash"]] <= 46).mean() >= 0.8


def test_real_macro(real):
    table = tables.nasbench_macro()
    assert sorted(table.cells) == list(sp.linear(8, 3)) and len(table) == 6_561
    assert table.frame.accuracy.max() == pytest.approx(0.9313, abs=1e-4)  # published: 93.13
    assert metrics.spearman(table.frame.accuracy, table.frame.macs) == pytest.approx(0.75, abs=0.01)


def test_real_nasbench201(real):
    for data, optimum in (("c10", 0.9437), ("c100", 0.7351), ("in16", 0.4731)):
        table = tables.nasbench201(data, device="fpga")
        assert len(table) == 15_625 and np.isfinite(table.about.latency_ms).all()
        truth = table.accuracies(split="test", epochs=200)
        assert truth.max() == pytest.approx(optimum, abs=1e-4)
    assert math.isnan(tables.nasbench201().about.latency_ms[0])
    columns = pd.read_csv(tables.find("nasbench201_latency_ms.csv.xz"), nrows=1)
    assert len(columns.columns) == 1 + 27


def test_real_rnn_order(real):
    order = tables.rnn32_order()
    assert order[0] == (0, sp.RNN_OPS.index("tanh"), 0, sp.RNN_OPS.index("sigmoid"))
    assert sorted(order) == sorted(sp.rnn(2))


def test_real_learning_curves(real):
    """Row 27: ranks still change between a quarter of the training and its end."""
    curves = tables.nasbench_nlp_curves()
    assert curves.loss.shape == (341, 50)
    table = tables.rank_history(-curves.loss, -curves.final).set_index("epoch")
    assert table.tau[50] > 0.95 and table.tau[1] < table.tau[12] < table.tau[50]
    assert table.pairs[12] > 0
