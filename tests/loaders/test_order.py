"""The order is a pure function of manifest, seed, epoch and position."""

import numpy as np
import pytest

from iianet.errors import ConfigError, ManifestError
from loaders.order import Order


def order(utterances: int = 50, per_utterance: int = 3, **changed: object) -> Order:
    settings: dict[str, object] = {
        "utterance_of_example": np.repeat(np.arange(utterances), per_utterance),
        "eligible": np.arange(utterances * per_utterance),
        "seed": 0,
        "batch_size": 4,
        "world_size": 1,
        "shuffle": True,
        "dynamic_mixing": False,
        "drop_last": True,
        "block_size": 5,
        "window_blocks": 2,
    }
    return Order(**{**settings, **changed})  # type: ignore[arg-type]


def test_every_example_comes_once_per_epoch() -> None:
    examples = order().epoch(0).example
    assert sorted(examples.tolist()) == list(range(150))


def test_epochs_and_seeds_differ_and_repeat() -> None:
    first = order().epoch(0).example.tolist()
    assert order().epoch(0).example.tolist() == first
    assert order().epoch(1).example.tolist() != first
    assert order(seed=1).epoch(0).example.tolist() != first


def test_without_shuffle_every_epoch_is_hash_order() -> None:
    assert order(shuffle=False).epoch(3).example.tolist() == list(range(150))


def test_a_window_reads_only_its_blocks() -> None:
    examples = order().epoch(0).example
    blocks = examples // 3 // 5
    for start in range(0, 150, 30):  # a window is 2 blocks of 5 utterances of 3 examples
        assert len(np.unique(blocks[start : start + 30])) == 2


def test_left_out_examples_never_come_and_move_no_block() -> None:
    eligible = np.setdiff1d(np.arange(150), np.arange(0, 150, 7))
    examples = order(eligible=eligible).epoch(0).example
    assert sorted(examples.tolist()) == eligible.tolist()


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("drop_last", [True, False])
def test_global_batches_do_not_depend_on_the_ranks(world_size: int, drop_last: bool) -> None:
    alone = order(batch_size=8, drop_last=drop_last)
    shared = order(batch_size=8 // world_size, world_size=world_size, drop_last=drop_last)
    assert shared.num_batches == alone.num_batches
    for batch in range(alone.num_batches):
        parts = [shared.positions(batch, rank) for rank in range(world_size)]
        assert np.concatenate(parts).tolist() == alone.positions(batch, 0).tolist()


def test_the_last_incomplete_batch_is_kept_or_left_out() -> None:
    assert order(batch_size=4, drop_last=True).num_batches == 37
    kept = order(batch_size=4, drop_last=False)
    assert kept.num_batches == 38
    assert kept.positions(37, 0).tolist() == [148, 149]


def test_ranks_share_a_short_last_batch_evenly() -> None:
    shared = order(utterances=5, per_utterance=1, batch_size=2, world_size=4, drop_last=False)
    assert [len(shared.positions(0, rank)) for rank in range(4)] == [1, 1, 1, 2]


def test_an_interferer_is_of_another_video_and_of_the_same_window() -> None:
    epoch = order(dynamic_mixing=True).epoch(0)
    assert (epoch.interferer // 3 != epoch.example // 3).all()
    for start in range(0, 150, 30):
        window = slice(start, start + 30)
        assert set(epoch.interferer[window] // 15) <= set(epoch.example[window] // 15)


def test_static_mixing_has_no_interferers_and_the_same_order() -> None:
    static, dynamic = order().epoch(0), order(dynamic_mixing=True).epoch(0)
    assert (static.interferer == -1).all()
    assert static.example.tolist() == dynamic.example.tolist()


def test_interferers_are_drawn_evenly() -> None:
    epoch = order(utterances=10, per_utterance=500, dynamic_mixing=True, block_size=10, window_blocks=1).epoch(0)
    counts = np.bincount(epoch.interferer // 500, minlength=10)
    assert counts.min() > 400
    assert counts.max() < 600


def test_a_window_with_one_video_draws_from_the_whole_set() -> None:
    epoch = order(utterances=3, dynamic_mixing=True, block_size=1, window_blocks=1).epoch(0)
    assert (epoch.interferer // 3 != epoch.example // 3).all()


def test_a_video_that_fills_its_window_finds_the_rare_other() -> None:
    rare = order(utterance_of_example=np.append(np.zeros(100_000, dtype=np.int64), 1), eligible=np.arange(100_001))
    epoch = Order(**{**vars(rare), "dynamic_mixing": True}).epoch(0)
    assert (epoch.interferer[epoch.example < 100_000] == 100_000).all()


def test_dynamic_mixing_of_a_single_video_is_refused() -> None:
    with pytest.raises(ManifestError, match="only one"):
        order(utterances=1, dynamic_mixing=True)


def test_augmentation_depends_on_epoch_and_position_alone() -> None:
    first = order().augmentation(1, 7).integers(1 << 30, size=4).tolist()
    assert order(batch_size=9).augmentation(1, 7).integers(1 << 30, size=4).tolist() == first
    assert order().augmentation(1, 8).integers(1 << 30, size=4).tolist() != first
    assert order().augmentation(2, 7).integers(1 << 30, size=4).tolist() != first


LANES = {"drop_last": True, "batch_size": 8}


def test_lanes_lose_no_more_than_the_last_incomplete_batch() -> None:
    for lanes in (1, 2, 4):
        shuffled = order(lanes=lanes, **LANES)
        examples = shuffled.epoch(0).example[: shuffled.num_batches * 8]
        assert len(set(examples.tolist())) == len(examples)
        assert len(examples) > 150 - 8 - 8  # lanes differ by one example at most


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_a_node_reads_only_its_own_lanes_whatever_their_number(nodes: int) -> None:
    alone = order(lanes=4, **LANES)
    shared = order(lanes=4, drop_last=True, batch_size=8 // nodes, world_size=nodes)  # a rank on each node
    quarter = np.array_split(np.arange(150), 4)
    for node in range(nodes):
        own = np.concatenate(quarter[node * 4 // nodes : (node + 1) * 4 // nodes])
        positions = np.concatenate([shared.positions(batch, node) for batch in range(shared.num_batches)])
        assert set(shared.epoch(0).example[positions].tolist()) <= set(own.tolist())
    for batch in range(alone.num_batches):
        together = np.concatenate([shared.positions(batch, rank) for rank in range(nodes)])
        assert shared.epoch(0).example[together].tolist() == alone.epoch(0).example[alone.positions(batch, 0)].tolist()


def test_lanes_are_windowed_on_their_own_and_differ_from_one_lane() -> None:
    shuffled = order(lanes=2, **LANES)
    epoch = shuffled.epoch(0)
    for lane in range(2):
        own = np.arange(len(epoch.example)) % 8 // 4 == lane
        assert (np.diff(epoch.window[own]) >= 0).all()
    assert epoch.example.tolist() != order(**LANES).epoch(0).example[: len(epoch.example)].tolist()


@pytest.mark.parametrize(("lanes", "settings"), [(3, LANES), (2, {"drop_last": False, "batch_size": 8})])
def test_lanes_that_do_not_divide_a_step_are_refused(lanes: int, settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"order_lanes is {lanes}, and a step has 8 examples"):
        order(lanes=lanes, **settings)


def test_windows_ascend_and_hold_their_blocks() -> None:
    epoch = order().epoch(0)
    assert (np.diff(epoch.window) >= 0).all()
    for window in range(5):
        assert len(np.unique(epoch.example[epoch.window == window] // 3 // 5)) == 2


def test_a_block_takes_one_view_an_epoch_and_another_in_others() -> None:
    shuffled = order(views=3)
    seen = set()
    for number in range(20):
        epoch = shuffled.epoch(number)
        for block in range(10):
            views = set(epoch.view[epoch.example // 3 // 5 == block].tolist())
            assert len(views) == 1
            seen.add((block, views.pop()))
    assert seen == {(block, view) for block in range(10) for view in range(4)}
    assert not order().epoch(0).view.any()


def test_views_change_nothing_else() -> None:
    with_views, without = order(views=3, dynamic_mixing=True).epoch(4), order(dynamic_mixing=True).epoch(4)
    assert with_views.example.tolist() == without.example.tolist()
    assert with_views.interferer.tolist() == without.interferer.tolist()


def test_segments_start_anywhere_within_what_is_spare() -> None:
    spare = np.arange(150) % 4
    starts = order(spare_frames=spare, dynamic_mixing=True)
    found: dict[int, set[int]] = {}
    for number in range(40):
        epoch = starts.epoch(number)
        for of, at in ((epoch.example, epoch.start), (epoch.interferer, epoch.interferer_start)):
            assert (at <= spare[of]).all()
            for frames, start in zip(spare[of].tolist(), at.tolist(), strict=True):
                found.setdefault(frames, set()).add(start)
    assert found == {frames: set(range(frames + 1)) for frames in range(4)}
    assert not order().epoch(0).start.any()


GROUPS = np.repeat(np.arange(50) * 7 % 6, 3)
"""Six groups, whose utterances lie scattered in hash order."""


@pytest.mark.parametrize("lanes", [1, 2])
def test_no_two_of_a_group_are_mixed_and_partners_come_from_the_window(lanes: int) -> None:
    settings = {"dynamic_mixing": True, "lanes": lanes, "batch_size": 8}
    for number in range(20):
        epoch = order(group_of_example=GROUPS, **settings).epoch(number)
        assert (GROUPS[epoch.interferer] != GROUPS[epoch.example]).all()
        lane = np.arange(len(epoch.example)) % 8 // 4 if lanes == 2 else np.zeros(len(epoch.example))
        places = set(zip(lane.tolist(), epoch.window.tolist(), (epoch.example // 15).tolist(), strict=True))
        drawn = set(zip(lane.tolist(), epoch.window.tolist(), (epoch.interferer // 15).tolist(), strict=True))
        assert lanes == 2 or drawn <= places  # with lanes, a window's last examples may be left out
    without = order(**settings).epoch(0)
    assert (GROUPS[without.interferer] == GROUPS[without.example]).any(), "else nothing was to be avoided"


def test_groups_change_partners_alone() -> None:
    apart, before = order(group_of_example=GROUPS, dynamic_mixing=True).epoch(2), order(dynamic_mixing=True).epoch(2)
    assert apart.example.tolist() == before.example.tolist()
    assert apart.interferer.tolist() != before.interferer.tolist()


def test_each_utterance_as_a_group_is_the_order_without_groups() -> None:
    alone = order(group_of_example=np.repeat(np.arange(50), 3)[::-1].copy(), dynamic_mixing=True).epoch(1)
    assert (alone.interferer // 3 != alone.example // 3).all()
    same = order(group_of_example=np.repeat(np.arange(50), 3), dynamic_mixing=True).epoch(1)
    assert same.interferer.tolist() == order(dynamic_mixing=True).epoch(1).interferer.tolist()


def test_the_order_of_runs_that_began_before_there_were_groups_is_what_it_was() -> None:
    epoch = order(dynamic_mixing=True).epoch(3)
    assert epoch.example[:12].tolist() == [125, 120, 30, 127, 131, 35, 124, 130, 128, 123, 34, 32]
    assert epoch.interferer[:12].tolist() == [44, 35, 129, 121, 134, 122, 36, 31, 124, 130, 123, 122]
    lanes = order(dynamic_mixing=True, lanes=2, batch_size=8).epoch(1)
    assert lanes.example[:8].tolist() == [22, 26, 56, 49, 79, 84, 98, 82]
    assert lanes.interferer[:8].tolist() == [56, 21, 21, 18, 96, 102, 99, 90]


def test_partners_of_other_groups_are_drawn_evenly() -> None:
    groups = np.repeat([0, 0, 1, 2, 2, 2, 1, 0, 3, 3], 500)  # by utterance; lies together for none of them but 2 and 3
    settings = {"utterances": 10, "per_utterance": 500, "block_size": 10, "window_blocks": 1}
    epoch = order(group_of_example=groups, dynamic_mixing=True, **settings).epoch(0)
    for group in range(4):
        counts = np.bincount(epoch.interferer[groups[epoch.example] == group] // 500, minlength=10)
        others = counts[groups[::500] != group]
        assert counts.sum() == others.sum()
        assert others.min() > 0.7 * others.mean()
        assert others.max() < 1.3 * others.mean()


def test_a_window_of_one_group_takes_its_partners_from_the_whole_set() -> None:
    groups = np.repeat(np.arange(50) // 10, 3)  # a window is ten utterances: hash order gives each a group of its own
    epoch = order(group_of_example=groups, dynamic_mixing=True, shuffle=False).epoch(0)
    for start in range(0, 150, 30):
        assert len(set(groups[epoch.example[start : start + 30]].tolist())) == 1
    assert (groups[epoch.interferer] != groups[epoch.example]).all()
    assert len(set(groups[epoch.interferer].tolist())) == 5


def test_a_lane_of_one_group_takes_its_partners_from_the_other_lane() -> None:
    groups = np.repeat(np.arange(50) // 25, 3)
    epoch = order(group_of_example=groups, dynamic_mixing=True, lanes=2, batch_size=8).epoch(0)
    assert (groups[epoch.interferer] != groups[epoch.example]).all()


def test_a_training_set_of_one_group_is_refused() -> None:
    with pytest.raises(ManifestError, match=r"has only one; .*mix_apart: null"):
        order(group_of_example=np.zeros(150, dtype=np.int64), dynamic_mixing=True)
    order(group_of_example=np.zeros(150, dtype=np.int64), dynamic_mixing=False)
