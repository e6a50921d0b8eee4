"""Tables 2.1 to 2.6 as they were printed, and what their notes say about them."""

import pytest

from nas_core.data import reference

ROWS = {1: 5, 2: 11, 3: 13, 4: 9, 5: 9, 6: 9}


@pytest.mark.parametrize("number", ROWS)
def test_tables_are_there_with_source_and_note(number):
    frame = reference.load(f"yu_table_2_{number}")
    assert len(frame) == ROWS[number]
    assert frame.attrs["source"].endswith(f"table 2.{number}") and frame.attrs["notes"]


def test_images_add_up():
    sets = reference.load("yu_table_2_1")
    assert (sets.train + sets.val + sets.test == sets.total).all()
    kbh = sets.iloc[0]
    assert round(100 * kbh.train / kbh.total) == 18 and round(100 * kbh.test / kbh.total) == 63


def test_claims_about_hands():
    hands = reference.load("yu_table_2_3").set_index("model")
    iou = hands[[c for c in hands if c.endswith("miou")]]
    light = iou[hands.group == "light"].mean(axis=1).sort_values(ascending=False)
    assert light.index[:2].tolist() == ["DRU(4)", "SRU(0)"]
    assert ((iou.loc["DRU(4)"] > iou.loc["RefineNet"]).sum()) == 4
    # the caption overlooks one cell
    recurrent = ["Rec-Middle", "Rec-Last", "Rec-Simple", "SRU(0)", "SRU(3)", "DRU(4)"]
    worse = iou.loc[recurrent].lt(iou.loc["RefineNet"]).drop(columns="hof_miou").stack()
    assert worse[worse].index.tolist() == [("Rec-Middle", "kbh_miou")]


def test_claims_about_roads_vessels_and_towns():
    roads = reference.load("yu_table_2_5").set_index("model")
    assert roads.index[roads.mf1 > roads.break_even].tolist() == ["ICNet"]
    gain = roads.miou["DRU(4)"] - roads.miou["U-Net-G"]
    assert round(100 * gain) == 8
    vessels = reference.load("yu_table_2_4").set_index("model")
    assert (vessels[["miou", "mf1"]].idxmax() == "DRU(4)").all()
    # F1 of each class is 2·IoU / (1 + IoU), which is concave: no mean F1 above that of the mean
    assert (vessels.mf1 <= 2 * vessels.miou / (1 + vessels.miou) + 0.001).all()
    towns = reference.load("yu_table_2_6")
    pairs = towns[towns.channels.notna()].pivot(index="model", columns="channels", values="miou")
    assert (pairs[16] > pairs[8]).all()
    assert pairs.idxmax().tolist() == ["DRU(4)", "DRU(4)"]
