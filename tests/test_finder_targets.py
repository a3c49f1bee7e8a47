"""What the finder is taught of a picture's hands, and its loss."""

from __future__ import annotations

import numpy as np
import torch
from edge_hand.edge.finder import Maps, proposals
from edge_hand.trainer.nets.finder import Criterion, Output, Targets, targets
from edge_hand.trainer.synth.pictures import Hands
from test_train_finder import hands


def taught(which: Hands) -> Targets:
    centre = torch.from_numpy(which.centre_m.astype(np.float32))
    return targets(centre, torch.from_numpy(which.right), torch.from_numpy(which.role))


def as_maps(t: Targets) -> Maps:
    """The maps of a network that gives what it was taught."""
    return Maps(*(x[0].numpy() for x in (torch.logit(t.heat, 1e-4), t.offset, t.log_z, 20 * t.is_right - 10)))


def test_who_gives_what_is_taught_finds_the_hands() -> None:
    there = hands((-0.1, 0.05, 0.45, True, 1), (0.3, -0.2, 0.9, False, 1), (0.0, 0.0, 0.0, True, -1))
    rois = proposals(as_maps(taught(there)), 0.5, 6)
    assert len(rois) == 2
    for roi in rois:
        at = int(np.argmin(np.linalg.norm(there.centre_m[0] - roi.centre_m, axis=1)))
        np.testing.assert_allclose(roi.centre_m, there.centre_m[0, at], atol=1e-4)
        assert roi.side == ("right" if there.right[0, at] else "left")


def test_about_a_hand_hardly_seen_nothing_is_learned() -> None:
    t = taught(hands((0.0, 0.0, 0.5, True, 0)))
    assert t.heat.max() == 0 and t.weight.max() == 0
    cells = int((~t.counts).sum())
    assert not t.counts[0, 14, 20] and 30 < cells < 60  # 9 cm at 0.5 m are 3.6 cells
    assert taught(hands((0.0, 0.0, 0.5, True, -1))).counts.all()
    both = taught(hands((0.0, 0.0, 0.5, True, 0), (0.01, 0.0, 0.5, True, 1)))
    assert both.counts[both.heat == 1].all()


def test_a_hand_outside_the_picture_is_not_asked_for() -> None:
    assert taught(hands((0.6, 0.0, 0.5, True, 1))).heat.max() == 0


def test_the_loss_is_least_where_the_maps_are_right() -> None:
    there = hands((-0.1, 0.05, 0.45, True, 1), (0.3, -0.2, 0.9, False, 1))
    t = taught(there)
    right = Output(
        torch.where(t.heat == 1, 9.0, -9.0)[:, None], t.offset, t.log_z[:, None], (20 * t.is_right - 10)[:, None]
    )
    assert float(Criterion()(right, t)["loss"]) < 0.01
    wrong = {"heat": -right.heat, "offset": right.offset + 0.5, "log_z": right.log_z + 0.1, "right": -right.right}
    for term, (name, value) in zip(("heat", "offset", "log_z", "side"), wrong.items(), strict=True):
        terms = Criterion()(right._replace(**{name: value}), t)
        assert float(terms[term]) > 0.25 and float(terms["loss"]) > 0.25
