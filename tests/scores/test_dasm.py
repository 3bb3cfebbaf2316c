"""DASM end to end on small stand-in checkouts with the real call form; failures by their text."""

import json
import math
import os
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import dasm
import preprocess
from config import DasmEmbedConfig, DasmScoreConfig, PreprocessConfig
from core import command, errors
from core.files import contents, own_folder
from core.tensors import with_digest
from scores.score_files import open_scores
from sed import caches
from sed.timeline import Event, write_labels

pytest.importorskip("yaml", reason="PyYAML (requirements-dev.txt) is not installed")

# Names, arguments and results as in Transformer4SED; everything inside is made up and small. Its
# constructor, too, reads two files that no user of a checkpoint needs.
DASM_CODE = """
import torch
import torchaudio
import torchaudio.transforms as transforms
from torchvision.transforms import functional
from torch import nn


class CLAPAudioCfp:
    width = 6


class Backbone(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.layer = nn.Linear(80, cfg.width)
        self.bn0 = nn.BatchNorm1d(cfg.width)

    def wav2mel(self, wav, mixup_lambda):
        mel = self.layer(wav.unflatten(1, (-1, 80)))
        if self.training:
            mel = mel + torch.randn_like(mel)
        return self.bn0(mel.transpose(1, 2)).transpose(1, 2)[:, None]


def create_htsat_model(cfg):
    assert cfg is CLAPAudioCfp
    return Backbone(cfg)


class DASM_HTSAT(nn.Module):
    def __init__(self, cnn_param, backbone_param, at_param, mlm_dict=None,
                 backbone_upsample_ratio=5, decoder="gru", class_num=10):
        super().__init__()
        self.ratio = backbone_upsample_ratio
        self._init_transformer_backbone(backbone_param)
        query = at_param["query"]
        if isinstance(query, str):
            query = torch.load(query)
        assert query.shape[0] == class_num
        self.at_query = nn.Parameter(query)
        self.query_projector = nn.Linear(at_param["query_dim"], 6)

    def _init_transformer_backbone(self, param):
        self.backbone = Backbone(CLAPAudioCfp)
        self.backbone.load_state_dict(torch.load(param["pretrain_model_path"]))

    def get_feature_extractor(self, mixup_lambda=None):
        return lambda wav: self.backbone.wav2mel(wav, mixup_lambda)

    def forward(self, input, encoder_win=False, mix_rate=0.5, win_param=[512, 49], temp_w=0.1,
                pad_mask=None, query=None, query_type=None, tgt_mask=None):
        assert query_type == "text"
        tokens = input[:, 0].unflatten(1, (10, -1)).mean(dim=2)
        x = torch.nn.functional.interpolate(tokens.transpose(1, 2), scale_factor=self.ratio)
        q = self.query_projector(query)
        q = q + torch.zeros(len(q), len(q)).masked_fill(tgt_mask, -torch.inf).softmax(1) @ q
        at_out = torch.sigmoid(tokens.mean(dim=1) @ q.T)
        strong = torch.sigmoid((q @ x).transpose(1, 2) / temp_w) * at_out[:, None]
        if pad_mask is not None:
            strong[pad_mask] = 0
        strong = strong.clamp(1e-7, 1)
        return strong.transpose(1, 2), strong.mean(dim=1), {"at_out": at_out}
"""

MGA_CODE = {
    "tools/utils.py": """
import wandb
import ruamel.yaml as yaml
from loguru import logger
from sentence_transformers import util
from sed_scores_eval.utils.scores import create_score_dataframe
""",
    "models/text_encoder.py": """
import json
import torch


class Config:
    @classmethod
    def from_pretrained(cls, folder):
        with open(folder + "/config.json") as stream:
            return json.load(stream)


class Bert(torch.nn.Module):
    config_class = Config

    def __init__(self, config, add_pooling_layer=True):
        super().__init__()
        assert not add_pooling_layer
        self.embedding = torch.nn.Embedding(config["vocab_size"], 8)

    @classmethod
    def from_pretrained(cls, folder, **kwargs):
        raise OSError("reads a weights file")


class Tokenizer:
    @classmethod
    def from_pretrained(cls, folder):
        return cls()

    def __call__(self, texts):
        longest = max(map(len, texts))
        return torch.tensor([[ord(c) % 64 for c in text.ljust(longest, chr(64))] for text in texts])


MODELS = {"bert-base-uncased": (Bert, Tokenizer, 8)}
""",
    "models/ase_model.py": """
import torch
from models.text_encoder import MODELS
from tools.utils import *


class Sparsemax(torch.nn.Module):
    def forward(self, input, device="cuda"):
        return input.softmax(-1) + torch.zeros(1, device=device)


class Codebook(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attn_activation = Sparsemax()

    def forward(self, feats, codebook, mask=None):
        attention = (feats @ codebook.T / 30 * mask[..., None]).mean(1)
        return self.attn_activation(attention) @ codebook


class ASE(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        kind, tokenizer, width = MODELS[config["text_encoder_args"]["type"]]
        self.tokenizer = tokenizer.from_pretrained(config["text_encoder_args"]["type"])
        folder = config["text_encoder_args"]["type"]
        self.text = kind.from_pretrained(folder, add_pooling_layer=False)
        self.word_proj = torch.nn.Linear(width, config["embed_size"])
        self.codebook = torch.nn.Parameter(torch.randn(5, config["embed_size"]))
        self.msc = Codebook()

    def encode_text(self, texts):
        tokens = self.tokenizer(texts)
        return None, self.word_proj(self.text.embedding(tokens)), (tokens > 0).float()
""",
}

YAML = """
DASM_HTSAT:
  init_kwargs:
    cnn_param: null
    backbone_param: {pretrain_model_path: ./no/such/file.pt}
    at_param: {query_dim: 1024, query: ./no/such/query.pt}
    backbone_upsample_ratio: 5
    class_num: 4
include: {base_path: shared/base.yaml, keys: [feature]}
"""
FEATURE = "feature: {sr: 8000, audio_max_len: 1, hopsize: 80, net_subsample: 2, win_length: 160}\n"
LABELS = {
    "a.wav": [Event(0.1, 0.5, "Dog"), Event(0.2, 0.9, "Running_water")],
    "Y--x_9.000.flac": [Event(0.3, 0.6, "Dog")],
    "short.wav": [Event(0.1, 0.2, "Cat")],
    "empty.wav": [],
    "stereo.wav": [Event(0, 1, "Cat")],
}
CLASSES = ["Cat", "Dog", "Running_water"]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_audio(path: Path, seconds: float = 1.0, rate: int = 32_000, gain: float = 0.3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wav = np.random.default_rng(len(path.name)).normal(0, gain, round(seconds * rate)).clip(-1, 1)
    wav = np.column_stack([wav, wav / 3]) if path.name == "stereo.wav" else wav
    soundfile.write(path, wav, rate)


def model_of(home: Path) -> torch.nn.Module:
    """The stand-in for DASM, built past its constructor's files, random weights."""
    module = types.ModuleType("fake")
    text = DASM_CODE.replace("import torchaudio", "#").replace("from torchvision", "#")
    exec(text, module.__dict__)
    (home / "no/such").mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(module.Backbone(module.CLAPAudioCfp).state_dict(), home / "no/such/file.pt")
    backbone = {"pretrain_model_path": home / "no/such/file.pt"}
    at_param = {"query_dim": 1024, "query": torch.randn(4, 1024) / 32}
    model = module.DASM_HTSAT(None, backbone, at_param, class_num=4)
    model.backbone.bn0.running_var /= 30
    model.query_projector.weight.data *= 60
    shutil.rmtree(home / "no")
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Both checkouts, weights, audio, labels; and queries.pt, made by `embed`."""
    home = tmp_path_factory.mktemp("dasm")
    folder = home / "repo/src/models/detect_any_sound"
    write(folder / "detect_any_sound_htast.py", DASM_CODE)
    for path in (folder, folder.parent, folder.parent.parent):
        write(path / "__init__.py", "")
    write(home / "text_query/config.yaml", YAML)
    write(home / "repo/shared/base.yaml", FEATURE)  # found below the checkout
    torch.save(model_of(home).state_dict(), home / "dasm.pt")
    for name, text in MGA_CODE.items():
        write(home / "mga" / name, text)
    settings = "embed_size: 1024\ntext_encoder_args: {type: bert-base-uncased}\n"
    write(home / "mga/settings/inference_sed.yaml", settings)
    write(home / "bert/config.json", json.dumps({"vocab_size": 64}))
    weights = {
        "text.embedding.weight": torch.randn(64, 8),
        "text.embedding.position_ids": torch.arange(3),  # of an older transformers
        "word_proj.weight": torch.randn(1024, 8),
        "word_proj.bias": torch.randn(1024),
        "codebook": torch.randn(5, 1024),
    }
    torch.save({"model": weights, "epoch": 3}, home / "mga.pt")
    for name in LABELS:
        write_audio(home / "audio" / name, 0.33 if name == "short.wav" else 1.0)
    write_labels(home / "labels.tsv", LABELS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        dasm.main(embed_config())
    forget()
    return home


def forget() -> None:
    """Checkouts of other tests must not stay loaded in this process."""
    for name in [
        name for name in sys.modules if name.partition(".")[0] in ("src", "models", "tools")
    ]:
        del sys.modules[name]


@pytest.fixture
def home(made, tmp_path, monkeypatch):
    """A copy to work in and to damage, entered, so that paths in messages are short."""
    shutil.copytree(made, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    yield tmp_path / "home"
    forget()


def embed_config(**changes) -> DasmEmbedConfig:
    inputs = {"mga_clap": Path("mga"), "mga_weights": Path("mga.pt"), "bert": Path("bert")}
    if "query_file" not in changes:
        inputs["classes_from"] = Path("labels.tsv")
    return DasmEmbedConfig(**(inputs | {"device": "cpu", "threads": 1} | changes))


def score_config(**changes) -> DasmScoreConfig:
    inputs = {
        "dasm_repo": Path("repo"),
        "dasm_config": Path("text_query/config.yaml"),
        "dasm_weights": Path("dasm.pt"),
        "audio": Path("audio"),
        "labels": Path("labels.tsv"),
        "out": Path("scores/train"),
        "batch": 2,
        "device": "cpu",
        "threads": 1,
    }
    return DasmScoreConfig(**(inputs | changes))


# ---------------------------------------------------------------------------- queries


def test_queries_hold_classes_prompts_and_unit_vectors(made):
    content = torch.load(made / "queries.pt", weights_only=True)
    assert content["classes"] == CLASSES
    assert content["prompts"] == ["sound of cat", "sound of dog", "sound of running water"]
    assert content["vectors"].shape == (3, 1024)
    torch.testing.assert_close(content["vectors"].norm(dim=1), torch.ones(3))


def test_prompt_styles_and_own_prompts(home):
    dasm.main(embed_config(prompt_style="raw", out=Path("raw.pt")))
    raw = torch.load("raw.pt", weights_only=True)
    assert raw["prompts"] == ["sound of cat", "sound of dog", "sound of running_water"]
    text = "Running_water\n\nDog\tthe barking of a Dog\nSiren_x\n"
    write(Path("queries.txt"), text)
    dasm.main(embed_config(query_file=Path("queries.txt"), out=Path("own.pt")))
    own = torch.load("own.pt", weights_only=True)
    assert own["classes"] == ["Running_water", "Dog", "Siren_x"]
    assert own["prompts"] == ["sound of running water", "the barking of a Dog", "sound of siren x"]
    first = torch.load("queries.pt", weights_only=True)
    torch.testing.assert_close(own["vectors"][0], first["vectors"][2])
    assert not torch.allclose(own["vectors"][1], first["vectors"][1])
    assert not torch.allclose(raw["vectors"][2], first["vectors"][2])


# ---------------------------------------------------------------------------- scores


def as_in_the_notebook(made: Path, wav: np.ndarray, vector: torch.Tensor) -> tuple:
    """Strong (T,) and tag of one class asked for alone, by the steps of DASM's notebook."""
    model = model_of(made)
    model.load_state_dict(torch.load(made / "dasm.pt", weights_only=True))
    model.eval()
    query = torch.cat([model.at_query, vector[None]])
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[:, :4] = False
    mask.fill_diagonal_(False)
    padded = torch.from_numpy(np.pad(wav, (0, 8000 - len(wav))))[None]
    pad_mask = torch.arange(50) >= math.ceil(len(wav) / 160)
    with torch.no_grad():
        strong, _, others = model(
            input=model.get_feature_extractor()(padded),
            temp_w=0.5,
            pad_mask=pad_mask[None],
            query=query,
            query_type="text",
            tgt_mask=mask,
        )
    return strong[0, 4, ~pad_mask].numpy(), float(others["at_out"][0, 4])


def test_scores_are_those_of_the_notebook_one_class_at_a_time(home, capsys):
    dasm.main(score_config())
    assert "5 of 5 clips, 3 classes -> scores/train" in capsys.readouterr().out
    source = open_scores(Path("scores/train"))
    assert source.classes == CLASSES and source.missing(list(LABELS)) == []
    vectors = torch.load("queries.pt", weights_only=True)["vectors"]
    settings = dasm.read_settings(Path("text_query/config.yaml"), Path("repo"))
    for name in LABELS:
        clip = source.scores(name)
        wav = dasm.read_clip(home / "audio" / name, settings)
        count = 17 if name == "short.wav" else 50  # 0.33 s: 16 frames and a part of one
        assert clip.values.shape == (3, count) and len(wav) == (2640 if count == 17 else 8000)
        np.testing.assert_allclose(clip.edges, np.arange(count + 1) * 0.02)
        for k in range(3):
            strong, tag = as_in_the_notebook(home, wav, vectors[k])
            np.testing.assert_allclose(clip.values[k], strong, atol=1e-6)
            assert abs(clip.tag[k] - tag) < 1e-6
    assert np.ptp(clip.values) > 0.01
    facts = source.meta()["scorer"]
    assert facts["temperature"] == 0.5 and facts["prompts"]["Running_water"].endswith("g water")
    assert {"weights", "config", "queries", "code"} <= set(facts)


def test_embed_score_preprocess(home, capsys):
    dasm.main(score_config())
    cfg = PreprocessConfig(
        split="train",
        labels=Path("labels.tsv"),
        audio=Path("audio"),
        scores=Path("scores/train"),
        pairs="all",
        workers=1,
    )
    preprocess.main(cfg)
    cache = caches.load_cache(Path("cache/train"))
    assert len(cache.pairs) == 15 and cache.manifest["scores"]["scorer"]["scorer"] == "DASM"
    tags = open_scores(Path("scores/train")).scores("a.wav").tag
    (record,) = [clip for clip in cache.clips if clip.filename == "a.wav"]
    np.testing.assert_allclose(record.tag, tags)  # the gate sees DASM's own clip-level scores


def test_without_labels_every_audio_file_is_scored(home):
    write_audio(Path("audio/more/b.ogg"))
    write(Path("audio/notes.txt"), "no audio")
    dasm.main(score_config(labels=None))
    names = [dasm.clip_id(name) for name in (*LABELS, "more/b.ogg")]
    assert sorted(open_scores(Path("scores/train")).clips()) == sorted(names)


def content(folder: Path) -> dict[str, tuple]:
    source = open_scores(folder)
    return {name: source.read(name) for name in source.clips()}


def test_a_stopped_run_goes_on_and_a_finished_one_is_left_alone(home, monkeypatch, capsys):
    dasm.main(score_config(out=Path("whole"), batch=1))
    monkeypatch.setattr(dasm, "CLIPS_PER_PART", 2)
    real, calls = dasm.Scorer.scores, []

    def stop(self, wavs):
        calls.append(len(wavs))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, wavs)

    monkeypatch.setattr(dasm.Scorer, "scores", stop)
    with pytest.raises(KeyboardInterrupt):
        dasm.main(score_config(batch=1))
    out = Path("scores/train")
    assert contents(out) == ["part-00000.npz", "part-00001.npz"]
    assert len(content(out)) == 3
    write(out / ".0123456789abcdef.tmp", "of a run that was killed")
    dasm.main(score_config(batch=1))
    assert sum(calls) == 4 + 2
    found, whole = content(out), content(Path("whole"))
    assert sorted(found) == sorted(whole)
    for name, clip in whole.items():
        np.testing.assert_array_equal(found[name].values, clip.values)
        np.testing.assert_array_equal(found[name].tag, clip.tag)
    capsys.readouterr()
    dasm.main(score_config(batch=1))
    assert "all 5 clips are scored, nothing to do" in capsys.readouterr().out and len(calls) == 6


OTHERS = {
    "temperature": lambda: {"temperature": 0.1},
    "weights": lambda: resave(Path("dasm.pt"), "query_projector.bias", lambda x: x + 1),
    "queries": lambda: resave(Path("queries.pt"), "vectors", lambda x: x + 0.01),
    "prompts": lambda: resave(Path("queries.pt"), "prompts", lambda x: [*x[1:], "else"]),
    "config": lambda: write(Path("text_query/config.yaml"), YAML + "    decoder: no\n"),
    "audio": lambda: {"audio": Path(shutil.copytree("audio", "other"))},
    "code": lambda: write(Path("repo/src/models/new.py"), "x = 1\n"),
}


def resave(path: Path, name: str, change) -> None:
    values = torch.load(path, weights_only=True)
    values[name] = change(values[name])
    torch.save(with_digest(values) if "sha256" in values else values, path)


@pytest.mark.parametrize("what", OTHERS)
def test_scores_of_other_settings_are_never_mixed(home, capsys, monkeypatch, what):
    dasm.main(score_config())
    before = Path("scores/train/part-00000.npz").read_bytes()
    if what == "config":
        text = YAML.replace("    class_num: 4", "    class_num: 4\n    decoder: no")
        changes = write(Path("text_query/config.yaml"), text)
    else:
        changes = OTHERS[what]()
    with pytest.raises(errors.InputError) as error:
        dasm.main(score_config(**(changes if isinstance(changes, dict) else {})))
    assert f"scores/train: holds scores made with other settings ({what})" in str(error.value)
    assert Path("scores/train/part-00000.npz").read_bytes() == before


def test_clips_that_may_be_left_out_and_notices(home, capsys):
    Path("audio/a.wav").unlink()
    write(Path("audio/stereo.wav"), "no audio")
    whole = Path("audio/Y--x_9.000.flac").read_bytes()
    Path("audio/Y--x_9.000.flac").write_bytes(whole[: len(whole) // 2])  # its header is whole
    soundfile.write("audio/empty.wav", np.zeros(16_000), 16_000)
    dasm.main(score_config(allow_missing=True))
    text = capsys.readouterr()
    assert sorted(content(Path("scores/train"))) == ["empty", "short"]
    assert "left out: a.wav: no audio" in text.out
    assert "left out: stereo.wav: cannot be read (" in text.out
    assert "left out: Y--x_9.000.flac: cannot be read (" in text.out
    assert "2 of 5 clips, 3 classes" in text.out
    note = "audio is 16 kHz; DASM was trained on content up to 14 kHz, scores will shift (1 clips"
    assert note in text.out and "note: empty.wav: all zero" in text.out + text.err
    with pytest.raises(errors.InputError, match=r"1 of 5 clips in labels\.tsv have no audio"):
        dasm.main(score_config())


def test_long_recordings(home, capsys):
    write_audio(Path("audio/a.wav"), 1.02)  # a little longer: cut without a word
    write_audio(Path("audio/stereo.wav"), 1.23)
    dasm.main(score_config(cut_long=True))
    found = content(Path("scores/train"))
    assert found["a"].values.shape == found["stereo"].values.shape == (3, 50)


# ---------------------------------------------------------------------------- what is refused


def edit(path: str, old: str, new: str):
    def act() -> None:
        text = Path(path).read_text(encoding="utf-8")
        assert old in text
        write(Path(path), text.replace(old, new))

    return act


def change(path: str, name: str, value):
    return lambda: resave(Path(path), name, value)


def drop(path: str, *names: str):
    def act() -> None:
        values = torch.load(path, weights_only=True)
        for name in names:
            del values[name]
        torch.save(values | {"other.weight": torch.zeros(1)}, path)

    return act


def foreign_src() -> None:
    module = types.ModuleType("src")
    module.__file__ = "/elsewhere/src/__init__.py"
    sys.modules["src"] = module


def two_tables() -> None:
    values = torch.load("dasm.pt", weights_only=True)
    del values["at_query"]
    tables = {"at_query.0": torch.zeros(4, 1024), "at_query.1": torch.zeros(4, 768)}
    torch.save(values | tables, "dasm.pt")


MODEL = "repo/src/models/detect_any_sound/detect_any_sound_htast.py"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
SCORE = "score --dasm-repo repo --dasm-config text_query/config.yaml --dasm-weights dasm.pt"
SCORE += " --audio audio --labels labels.tsv --out scores/train --batch 2"
EMBED = "embed --classes-from labels.tsv --mga-clap mga --mga-weights mga.pt --bert bert"
EMBED += " --out scores/q.pt"
SUPPORTED = "only text checkpoints with one 407 x 1024 table are supported"
FAILURES = {
    "no checkout": (
        lambda: shutil.rmtree("repo/src"),
        SCORE,
        "--dasm-repo repo: src/models/detect_any_sound/detect_any_sound_htast.py not found;"
        " give the root of a Transformer4SED checkout",
    ),
    "package missing": (
        edit(MODEL, "import torchaudio\n", "import timm_of_nobody\n"),
        SCORE,
        "DASM needs the package 'timm_of_nobody' (not installed). Install the packages listed in"
        " docs/dasm.md",
    ),
    "incomplete checkout": (
        edit(MODEL, "import torchaudio\n", "import src.models.passt\n"),
        SCORE,
        "repo: cannot be imported (No module named 'src.models.passt')",
    ),
    "stand-in used": (
        edit(MODEL, "self.ratio =", "transforms.MelSpectrogram(); self.ratio ="),
        SCORE,
        "the checkout uses torchaudio.transforms.MelSpectrogram, which DASM should not need",
    ),
    "own src": (
        foreign_src,
        SCORE,
        "a package named 'src' from /elsewhere/src/__init__.py is already loaded;"
        " run dasm.py as its own process",
    ),
    "no weights": (lambda: Path("dasm.pt").unlink(), SCORE, "--dasm-weights dasm.pt: not found"),
    "pointer": (
        lambda: write(Path("dasm.pt"), POINTER),
        SCORE,
        f"dasm.pt is a Git LFS pointer ({len(POINTER)} bytes), not weights: run git lfs pull",
    ),
    "not weights": (
        lambda: write(Path("dasm.pt"), "hello"),
        SCORE,
        "dasm.pt: damaged, or not a file of tensors",
    ),
    "no config": (
        lambda: Path("text_query/config.yaml").unlink(),
        SCORE,
        "--dasm-config text_query/config.yaml: not found",
    ),
    "no init_kwargs": (
        edit("text_query/config.yaml", "init_kwargs", "init"),
        SCORE,
        "config.yaml: cannot be used (KeyError('init_kwargs')); is this the text_query config?",
    ),
    "no class_num": (
        edit("text_query/config.yaml", "class_num: 4", ""),
        SCORE,
        "config.yaml: cannot be used (KeyError('class_num')); is this the text_query config?",
    ),
    "masked pre-training": (
        edit("text_query/config.yaml", "class_num: 4", "class_num: 4\n    mlm_dict: {out_dim: 3}"),
        SCORE,
        "config.yaml: mlm_dict is set, so this model does not detect",
    ),
    "no feature": (
        edit("repo/shared/base.yaml", "hopsize", "hop"),
        SCORE,
        "config.yaml: cannot be used (KeyError('hopsize')); is this the text_query config?",
    ),
    "include": (
        edit("repo/shared/base.yaml", "feature", "features"),
        SCORE,
        "text_query/config.yaml: cannot be used (KeyError('feature'))",
    ),
    "not yaml": (
        lambda: write(Path("text_query/config.yaml"), "a: [1,\nb: {"),
        SCORE,
        "text_query/config.yaml: cannot be read (while parsing",
    ),
    "unknown argument": (
        edit("text_query/config.yaml", "class_num: 4", "class_num: 4\n    lora: 3"),
        SCORE,
        "text_query/config.yaml: DASM_HTSAT cannot be built (TypeError: ",
    ),
    "keys": (
        drop("dasm.pt", "query_projector.bias", "backbone.layer.weight"),
        SCORE,
        "dasm.pt: weights do not fit the network: 3, first backbone.layer.weight",
    ),
    "shapes": (
        change("dasm.pt", "query_projector.bias", lambda x: x[:2]),
        SCORE,
        "dasm.pt: weights do not fit the network: 1, first query_projector.bias",
    ),
    "audio config": (
        edit("text_query/config.yaml", "query_dim: 1024", "query_dim: 768"),
        SCORE,
        f"this checkpoint expects queries of width 768; {SUPPORTED}",
    ),
    "audio checkpoint": (
        change("dasm.pt", "at_query", lambda x: x[:, :768]),
        SCORE,
        f"this checkpoint expects queries of width 768; {SUPPORTED}",
    ),
    "two modalities": (
        two_tables,
        SCORE,
        f"this checkpoint expects queries of width [1024, 768]; {SUPPORTED}",
    ),
    "query width": (
        change("queries.pt", "vectors", lambda x: x[:, :768]),
        SCORE,
        "queries queries.pt: 3 x 768, the model wants width 1024",
    ),
    "query class": (
        change("queries.pt", "classes", lambda _: ["Cat", "dog", "Running_water"]),
        SCORE,
        "queries queries.pt: no vector for Dog (has: Cat, dog, Running_water)",
    ),
    "no query file": (
        drop("queries.pt", "vectors"),
        SCORE,
        "queries.pt: damaged",
    ),
    "frames": (
        edit("text_query/config.yaml", "upsample_ratio: 5", "upsample_ratio: 4.8"),
        SCORE,
        "model gives 48 frames, config says 50: backbone_upsample_ratio and net_subsample disagree",
    ),
    "rows": (
        edit(MODEL, "return strong.transpose(1, 2),", "return strong.transpose(1, 2)[:, 1:],"),
        SCORE,
        "model gives 6 rows and 7 tags for 4 base and 3 own queries",
    ),
    "forward": (
        edit(MODEL, 'assert query_type == "text"', "raise RuntimeError('two' + chr(10) + 'lines')"),
        SCORE,
        "the model fails on a clip of silence (RuntimeError: two lines)",
    ),
    "no audio": (
        lambda: [Path("audio", name).unlink() for name in ("a.wav", "empty.wav")],
        SCORE,
        "2 of 5 clips in labels.tsv have no audio under audio (first: a.wav). --allow-missing"
        " leaves them out and lists them",
    ),
    "no audio folder": (
        lambda: shutil.rmtree("audio"),
        SCORE,
        "--audio audio: no such folder",
    ),
    "unreadable": (
        lambda: write(Path("audio/a.wav"), "hello"),
        SCORE,
        "a.wav: cannot be read (",
    ),
    "empty": (
        lambda: soundfile.write("audio/a.wav", np.zeros(0), 32_000),
        SCORE,
        "a.wav: no samples",
    ),
    "nan audio": (
        lambda: soundfile.write("audio/a.wav", np.full(9, np.nan), 32_000, "FLOAT"),
        SCORE,
        "1 of 5 clips could not be scored (first: a.wav: samples are not finite)",
    ),
    "long": (
        lambda: write_audio(Path("audio/a.wav"), 1.23),
        SCORE,
        "a.wav: 1.2 s; DASM takes 1 s. --cut-long keeps the first 1 s",
    ),
    "model nan": (
        edit(MODEL, "strong = strong.clamp", "strong[:, :, 5] = torch.nan; strong = strong.clamp"),
        SCORE,
        "a.wav: model returned NaN for class Dog",
    ),
    "same id": (
        lambda: write(Path("labels.tsv"), Path("labels.tsv").read_text() + "a.flac\t0\t1\tDog\n"),
        SCORE,
        "a.wav and a.flac differ in their extension only",
    ),
    "other files": (
        lambda: write(Path("scores/train/mine.tsv"), ""),
        SCORE,
        "--out scores/train: holds other files (mine.tsv); give a new folder",
    ),
    "no mga": (
        lambda: shutil.rmtree("mga/models"),
        EMBED,
        "--mga-clap mga: models/ase_model.py not found; give the root of an MGA-CLAP checkout",
    ),
    "no mga weights": (lambda: Path("mga.pt").unlink(), EMBED, "--mga-weights mga.pt: not found"),
    "mga weights with objects": (
        lambda: torch.save({"model": Path("x")}, "mga.pt"),
        EMBED,
        "mga.pt: damaged, or not a file of tensors (UnpicklingError); if you trust where it comes"
        " from, --trust-pickle loads it all the same",
    ),
    "other mga weights": (
        lambda: torch.save({"state": {}}, "mga.pt"),
        EMBED,
        "--mga-weights mga.pt: no 'model' in it",
    ),
    "mga keys": (
        lambda: torch.save({"model": {}}, "mga.pt"),
        EMBED,
        "mga.pt: weights do not fit the network: 4, first ",
    ),
    "no bert": (
        lambda: Path("bert/config.json").unlink(),
        EMBED,
        "--bert bert: no config.json; give the folder of bert-base-uncased",
    ),
    "wrong bert": (
        lambda: write(Path("bert/config.json"), "hello"),
        EMBED,
        "--bert bert: cannot be used (",
    ),
    "transformers missing": (
        edit("mga/models/text_encoder.py", "import json", "import json, transformers_of_nobody"),
        EMBED,
        "DASM needs the package 'transformers_of_nobody' (not installed)",
    ),
    "out is there": (
        lambda: write(Path("scores/q.pt"), ""),
        EMBED,
        "--out scores/q.pt: is there already; remove it or give another name",
    ),
    "no events": (
        lambda: write_labels(Path("labels.tsv"), {"a.wav": []}),
        EMBED,
        "--classes-from labels.tsv: no events, so no classes",
    ),
    "class twice": (
        lambda: write(Path("queries.txt"), "Dog\nCat\nDog\tbarking\n"),
        EMBED.replace("--classes-from labels.tsv", "--query-file queries.txt"),
        "queries.txt line 3: class 'Dog' occurs twice",
    ),
    "no class": (
        lambda: write(Path("queries.txt"), "\n"),
        EMBED.replace("--classes-from labels.tsv", "--query-file queries.txt"),
        "--query-file queries.txt: no class in it",
    ),
}
LEAVES = {"nan audio": ["train"], "other files": ["train"], "out is there": ["q.pt"]}


@pytest.mark.parametrize("case", FAILURES)
def test_every_failure_is_one_line_and_exit_code_2(home, monkeypatch, capfd, case):
    damage, line, message = FAILURES[case]
    damage()
    threads = ["--device", "cpu", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["dasm.py", *line.split(), *threads])
    with pytest.raises(SystemExit) as stop:
        command.run_script({"embed": DasmEmbedConfig, "score": DasmScoreConfig}, dasm.main)
    text = capfd.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in text
    errors = [row for row in text.splitlines() if row.startswith("dasm.py: error: ")]
    assert len(errors) == 1 and text.endswith(errors[0] + "\n")
    assert message in errors[0], errors[0]
    left = sorted(path.name for path in Path("scores").iterdir()) if Path("scores").is_dir() else []
    assert left == LEAVES.get(case, [])
    assert not list(Path().rglob("*.tmp"))


def test_a_full_disk(home, disk, fill_disk):
    """One line that names the file, nothing half-written; with room it goes on."""
    score, embed = score_config(out=disk / "scores"), embed_config(out=disk / "q" / "queries.pt")
    fill_disk(0)
    for cfg in (score, embed):
        with pytest.raises(errors.InputError, match=str(disk)):
            dasm.main(cfg)
        assert [path.name for path in disk.rglob("*")] == ["ballast"]
    (disk / "ballast").unlink()
    for cfg in (score, embed):
        dasm.main(cfg)
    assert len(content(disk / "scores")) == 5 and (disk / "q" / "queries.pt").is_file()


def test_a_foreign_folder_or_a_second_process(home):
    write(Path("theirs") / "mine.txt", "x")
    for out in (Path("theirs"), Path("audio"), Path("audio") / ".."):
        with pytest.raises(errors.InputError, match="--out"):
            dasm.main(score_config(out=out))
    refused = pytest.raises(errors.InputError, match=f"process {os.getpid()} on")
    with own_folder(Path("mine"), dasm.PARTS), refused:
        dasm.main(score_config(out=Path("mine")))
    assert [path.name for path in Path("theirs").iterdir()] == ["mine.txt"]


def test_cuda_that_is_not_there(home, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    expected = "--device cuda: no CUDA device; use --device cpu"
    with pytest.raises(errors.InputError) as error:
        dasm.main(score_config(device="cuda"))
    assert str(error.value) == expected


def test_trusted_weights_may_hold_objects(home):
    values = torch.load("mga.pt", weights_only=True)
    torch.save(values | {"config": {"path": Path("x")}}, "mga.pt")
    dasm.main(embed_config(trust_pickle=True, out=Path("again.pt")))
    again, first = (torch.load(name, weights_only=True) for name in ("again.pt", "queries.pt"))
    torch.testing.assert_close(again["vectors"], first["vectors"])


def test_one_source_of_classes():
    for changes in ({"classes_from": None}, {"query_file": Path("q"), "classes_from": Path("l")}):
        with pytest.raises(ValueError, match="--classes-from must be given, or --query-file"):
            embed_config(**changes)


def test_nothing_of_a_checkout_stays_on_the_import_path(home):
    before, finders = list(sys.path), list(sys.meta_path)
    dasm.main(score_config())
    assert (sys.path, sys.meta_path) == (before, finders)
    assert not [name for name in sys.modules if name.partition(".")[0] in dasm.DASM_UNUSED]


def test_a_loaded_package_that_the_checkout_imports_in_vain_comes_back(home, monkeypatch):
    """E.g. sed_scores_eval, which the event metrics need and MGA-CLAP does not."""
    loaded = types.ModuleType("sed_scores_eval")
    monkeypatch.setitem(sys.modules, "sed_scores_eval", loaded)
    dasm.main(embed_config(out=Path("again.pt")))
    assert Path("again.pt").exists() and sys.modules["sed_scores_eval"] is loaded


def test_as_a_process_of_its_own(home, run_script):
    dasm.main(score_config())
    done = run_script("dasm.py", *SCORE.split(), "--temperature", "0.1", cwd=home)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    expected = "dasm.py: error: --out scores/train: holds scores made with other settings (temp"
    assert done.stderr.startswith(expected) and done.stderr.count("\n") == 1
