"""Readers of stored files: text, JSON, NPZ, tensors, sound. Damage at random: test_fuzz.py."""

import hashlib
import json
import pickle

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

import preprocess
from core import stored, tensors
from core.errors import InputError
from core.stored import Each, check_form, is_count, is_share, is_text, maybe, misfit
from scores import score_files
from sed import timeline
from sed.audio import AudioFile, read_samples

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
)  # fmt: skip


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), VALUES))
def test_sealed_json_comes_back_and_knows_any_change(tmp_path_factory, value):
    value.pop(stored.CHECKSUM, None)
    path = tmp_path_factory.mktemp("json") / "x.json"
    preprocess.write_json(path, value)
    assert stored.read_json(path, "") == value
    path.write_text(json.dumps(json.loads(path.read_text())))  # other blanks, the same content
    assert stored.read_json(path, "") == value
    path.write_text(json.dumps(json.loads(path.read_text()) | {"another": 1}))
    with pytest.raises(InputError, match="checksum"):
        stored.read_json(path, "")


def test_json_without_a_checksum_has_the_keys_of_its_version(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}')
    assert stored.read_json(path, "", ("a", "b")) == stored.read_json(path, "") == {"a": 1}
    for keys in ((), ("b",)):
        with pytest.raises(InputError, match=r"no checksum.*make it"):
            stored.read_json(path, "make it", keys)


def test_json_of_another_kind_or_size(tmp_path):
    path = tmp_path / "x.json"
    for text in ("[1]", "3", "{", '{"a": NaN}', '{"a": 1' + "0" * 5000 + "}", "\xff"):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(InputError, match=r"x\.json: damaged"):
            stored.read_json(path, "")
    path.write_text('{"a": 1}')
    with pytest.raises(InputError, match="more than 5"):
        stored.read_json(path, "", most=5)


FORM = {"name": is_text, "rows": [{"f1": is_share}], "span": (is_count, is_count)}
GOOD = {"name": "a", "rows": [{"f1": 0.5}, {"f1": 1}], "span": [1, 2], "more": None}


def test_a_form_names_the_first_place_that_does_not_fit():
    assert misfit(GOOD, FORM) is None
    for change, place in (
        ({"name": 3}, ".name"),
        ({"rows": {}}, ".rows"),
        ({"rows": [{"f1": 0.5}, {"f1": 1.5}]}, ".rows[1].f1"),
        ({"rows": [{}]}, ".rows[0].f1"),
        ({"rows": [{"f1": True}]}, ".rows[0].f1"),
        ({"span": [1, 2, 3]}, ".span"),
        ({"span": [1, -2]}, ".span[1]"),
    ):
        assert misfit(GOOD | change, FORM) == place
    assert misfit([], FORM) == ""
    assert misfit({"a": 1, "b": None}, Each(maybe(is_count))) is None
    assert misfit({"a": 1, "b": "x"}, Each(maybe(is_count))) == ".b"
    with pytest.raises(ValueError, match="no usable rows"):
        check_form(GOOD | {"rows": 1}, FORM)


def test_a_line_that_no_table_has(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_bytes(b"a\r\nb\rc\n" + b"d" * stored.MOST_LINE)
    assert stored.read_text(path)[:6] == "a\nb\nc\n"
    path.write_bytes(b"a\n" + b"d" * (stored.MOST_LINE + 1))
    with pytest.raises(InputError, match="line 2: longer than"):
        stored.read_text(path)


# ---------------------------------------------------------------------------- arrays


def test_arrays_come_back_as_they_were(tmp_path):
    path, cure = tmp_path / "x.npz", "make it"
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array("x"), "f": np.eye(3, order="F")}
    for save in (np.savez, np.savez_compressed):
        save(path, **arrays, other=np.array([None]))
        found = stored.read_npz(path, {"a": ("f", (2, None)), "b": ("U", ())}, cure, ("c",))
        assert set(found) == {"a", "b"} and np.array_equal(found["a"], arrays["a"])
        for forms in (
            {"a": ("f", (3, 3))},
            {"a": ("f", (2,))},
            {"a": ("f", ((1, 5), 3))},
            {"a": ("i", (2, 3))},
            {"c": ("f", ())},
            {"other": ("O", (1,))},
        ):
            with pytest.raises(InputError, match=r"x\.npz: damaged.*make it"):
                stored.read_npz(path, forms, cure)
        with pytest.raises(InputError, match="Python objects"):
            stored.read_npz(path, {"other": ("O", (1,))}, cure)
    np.savez(path, **arrays)
    forms = {name: (array.dtype.kind, array.shape) for name, array in arrays.items()}
    mapped, read = stored.map_npz(path, True), stored.read_npz(path, forms, cure)
    for name, array in arrays.items():
        assert np.array_equal(mapped[name], array) and np.array_equal(read[name], array)
    assert isinstance(mapped["a"], np.memmap)


def test_what_unpacks_to_too_much(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.zeros(10_000))
    monkeypatch.setattr(stored, "MOST_UNPACKED", 10_000)
    assert len(stored.read_npz(path, {"a": ("f", (10_000,))}, "")["a"]) == 10_000  # as expected
    with pytest.raises(InputError, match="unpacks to"):
        stored.read_npz(path, {"a": ("f", (None,))}, "")


def test_score_files_are_checked_once(tmp_path):
    """A stamp of size and time spares the check; another process does not check again."""
    path, values = tmp_path / "x.npz", np.linspace(0, 1, 3000, dtype=np.float32)[None]
    scores = timeline.ClipScores(values, np.arange(3001) * 0.02)
    score_files.write_archive(path, ["Dog"], [("a", scores)])
    source = score_files.ScoreArchive(path)
    again = pickle.loads(pickle.dumps(source))
    assert again.checked == source.checked
    sha256 = hashlib.sha256(hashlib.sha256(path.read_bytes()).digest()).hexdigest()
    assert again.meta()["sha256"] == source.meta()["sha256"] == sha256
    size, data = path.stat().st_size, bytearray(path.read_bytes())
    data[data.index(values[0, 2000].tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"checksum|CRC"):
        score_files.ScoreArchive(path, None, None, source.checked)  # the time is another one
    stamps = {str(path): (size, path.stat().st_mtime_ns, "00")}
    changed = score_files.ScoreArchive(path, None, None, stamps).read("a").values
    assert np.flatnonzero(changed != values).tolist() == [2000]  # not looked at again


# ---------------------------------------------------------------------------- tensors


def test_a_checkpoint_closes_with_its_digest(tmp_path, capsys):
    path = tmp_path / "x.pt"
    content = {"w": torch.arange(5.0), "info": {"a": [1, 2.5, "x", None]}}
    torch.save(tensors.with_digest(content), path)
    found = tensors.read_checkpoint(path)
    assert list(found) == ["w", "info"] and tensors.digest(found) == tensors.digest(content)
    torch.save(tensors.with_digest(content) | {"info": {"a": [1, 2.5, "y", None]}}, path)
    with pytest.raises(InputError, match="digest"):
        tensors.read_checkpoint(path)
    capsys.readouterr()
    torch.save(content, path)  # of an older version
    for _ in range(2):
        assert tensors.digest(tensors.read_checkpoint(path)) == tensors.digest(content)
    assert capsys.readouterr().out.count("no digest") == 1
    torch.save({"w": torch.zeros(2)}, tmp_path / "bare.pt")  # of others
    tensors.read_checkpoint(tmp_path / "bare.pt")
    assert capsys.readouterr().out == ""


def test_a_network_is_built_once_its_weights_fit(tmp_path):
    devices = []

    def make():
        network = torch.nn.Linear(3, 2)
        devices.append(network.weight.device.type)
        return network

    good, other = torch.nn.Linear(3, 2).state_dict(), torch.nn.Linear(2, 2).state_dict()
    network = tensors.fitted(make, good, tmp_path)
    assert torch.equal(network.weight, good["weight"]) and devices == ["meta", "cpu"]
    for bad in (None, {}, {"weight": 1}, good | {"x": good["bias"]}, other):
        with pytest.raises(InputError, match="do not fit"):
            tensors.fitted(make, bad, tmp_path)
    assert devices[2:] == ["meta"] * 5


# ---------------------------------------------------------------------------- sound


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_S8"])
@pytest.mark.parametrize("channels", [1, 2])
def test_flac_is_read_as_libsndfile_reads_it(tmp_path, subtype, channels):
    path, rng = tmp_path / "a.flac", np.random.default_rng(0)
    soundfile.write(path, rng.uniform(-1, 1, (3000, channels)), 16_000, subtype=subtype)
    expected, _ = soundfile.read(path, dtype="float32", always_2d=True)
    found, rate = read_samples(path)
    assert rate == 16_000 and found.dtype == np.float32 and np.array_equal(found, expected)
    with AudioFile(path) as audio:
        parts = [audio.read(count) for count in (1000, 1, 1999, 5)]
    assert [len(part) for part in parts] == [1000, 1, 1999, 0]
    assert np.array_equal(np.concatenate(parts), expected)


def test_long_recordings_are_read_in_blocks(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, 5000), 16_000)
    expected, _ = read_samples(path)
    monkeypatch.setattr("sed.audio.BLOCK", 999)
    assert np.array_equal(read_samples(path)[0], expected)
