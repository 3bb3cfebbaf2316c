"""Which clip goes where: by a seed, by a list, recordings together."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InputError
from sed.splits import draw_parts, draw_share, groups_of, read_list, two_splits
from sed.timeline import Event

CLIPS = {f"c{i}.wav": [Event(0, 1, "Dog" if i % 3 else "Cat")] for i in range(10)}
GROUPS = st.lists(st.integers(1, 4), min_size=2, max_size=30).map(
    lambda sizes: [[f"{k}-{i}" for i in range(size)] for k, size in enumerate(sizes)]
)


def put(folder: Path, text: str) -> Path:
    (folder / "list.tsv").write_text(text)
    return folder / "list.tsv"


@given(GROUPS, st.floats(0.05, 0.9), st.integers(0, 5))
def test_a_share_is_drawn_group_by_group(groups, share, seed):
    chosen = draw_share(groups, share, seed)
    total = sum(map(len, groups))
    assert chosen == draw_share(groups, share, seed) and 0 < len(chosen) < total
    for group in groups:
        assert set(group) <= set(chosen) or not set(group) & set(chosen)
    if max(map(len, groups)) == 1:
        wanted = min(max(share * total, 1), total - 1)
        assert abs(len(chosen) - wanted) <= 1


@given(GROUPS, st.integers(2, 6), st.integers(0, 5))
def test_parts_hold_every_clip_once(groups, parts, seed):
    if len(groups) < parts:
        with pytest.raises(InputError, match="cannot make"):
            draw_parts(groups, parts, seed)
        return
    dealt = draw_parts(groups, parts, seed)
    assert sorted(name for part in dealt for name in part) == sorted(
        n for group in groups for n in group
    )
    assert all(dealt) and dealt == draw_parts(groups, parts, seed)
    home = {name: k for k, part in enumerate(dealt) for name in part}
    assert all(len({home[name] for name in group}) == 1 for group in groups)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= max(map(len, groups))


def test_other_seeds_draw_other_clips():
    groups = groups_of(CLIPS, None)
    assert len({tuple(sorted(draw_share(groups, 0.3, seed))) for seed in range(10)}) > 5
    assert len({str(draw_parts(groups, 5, seed)) for seed in range(10)}) == 10


def test_the_seed_counts_and_not_the_order_of_the_labels():
    reverse = dict(reversed(CLIPS.items()))
    one, other = (two_splits(clips, 0.2, 3, None, lambda _: None) for clips in (CLIPS, reverse))
    assert set(one["validation"]) == set(other["validation"]) and len(one["validation"]) == 2
    assert one["train"] == [name for name in CLIPS if name not in one["validation"]]


@pytest.mark.parametrize("text", ["c1\nc2.wav\n", "filename\nc1.wav\nc2\n", "file,x\nc1,1\nc2,2\n"])
def test_a_plain_list_names_the_validation_clips(tmp_path, text):
    said = []
    found = two_splits(CLIPS, None, 0, put(tmp_path, text), said.append)
    assert found["validation"] == ["c1.wav", "c2.wav"] and len(found["train"]) == 8
    assert any("8 train, 2 validation" in line for line in said)
    assert any("only train has Cat" in line for line in said)


def test_a_column_says_the_split(tmp_path):
    rows = [f"validation\t{name}" if i < 4 else f"train\t{name}" for i, name in enumerate(CLIPS)]
    text = "split\tfilename\n" + "\n".join([*rows, "train\tnobody.wav"])
    found = two_splits(CLIPS, None, 0, put(tmp_path, text), lambda _: None)
    assert found == {"train": list(CLIPS)[4:], "validation": list(CLIPS)[:4]}


def test_clips_of_one_recording_stay_together(tmp_path):
    lines = [f"{name},r{i // 3}" for i, name in enumerate(CLIPS)]
    path = put(tmp_path, "filename,recording\n" + "\n".join(lines))
    groups = groups_of(CLIPS, read_list(path, CLIPS))
    assert [len(group) for group in groups] == [3, 3, 3, 1]
    for seed in range(8):
        found = two_splits(CLIPS, 0.3, seed, path, lambda _: None)["validation"]
        assert all(set(g) <= set(found) or not set(g) & set(found) for g in groups)
    assert [sorted(part) for part in draw_parts(groups, 4, 0)].count(["c9.wav"]) == 1


WRONG = [
    ("", "empty"),
    ("nobody.wav\n", "none of its clips has labels"),
    ("a,b\nc1.wav,x\n", "no column filename"),
    ("c1.wav\nc1.wav\n", "named twice"),
    ("filename,split\nc1.wav,train\n", "no split"),
    ("filename,split\n" + "".join(f"{n},test\n" for n in CLIPS), "split 'test'"),
    ("filename,split\n" + "".join(f"{n},train\n" for n in CLIPS), "no clip is left for validation"),
    ("\n".join(CLIPS), "no clip is left for train"),
    ("filename,recording\nc1.wav,r1\n", "--validation-share"),
    (
        "filename,split,recording\n"
        + "".join(f"{n},{'train' if i else 'validation'},r\n" for i, n in enumerate(CLIPS)),
        "in both splits",
    ),
]


@pytest.mark.parametrize(("text", "cause"), WRONG)
def test_lists_that_make_no_sense(tmp_path, text, cause):
    with pytest.raises(InputError, match=cause):
        two_splits(CLIPS, None, 0, put(tmp_path, text), lambda _: None)


def test_one_clip_cannot_be_split():
    with pytest.raises(InputError, match="cannot be split"):
        two_splits({"a": []}, 0.5, 0, None, lambda _: None)
