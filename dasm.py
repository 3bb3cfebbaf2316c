"""Frame scores of DASM, a detector that is asked by text: your own checkout, config and weights.

Run:    python dasm.py embed --classes-from labels.tsv --mga-clap DIR --mga-weights FILE --bert DIR
        python dasm.py score --dasm-repo DIR --dasm-config FILE --dasm-weights FILE
            --queries queries.pt --labels labels.tsv --audio audio/train --out scores/train
Reads:  checkouts of Transformer4SED and MGA-CLAP, their weights, a BERT folder; audio; class names
Writes: queries.pt (a vector a class); <out>/part-*.npz (`scorers.ScoreArchive`); a rerun goes on
Shapes: K classes, N base queries of the model, D = 1024 width of a query, B clips, S samples,
        T frames

Two commands, two processes: both projects bring packages of the same names (`src`, `models`,
`tools`), and the text encoder's memory is free when scoring starts. Nothing of either project is
copied here; the way they are called follows their own notebook. Needs requirements-dasm.txt.
"""

import hashlib
import importlib
import importlib.abc
import importlib.machinery
import math
import os
import sys
import types
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

from config import DasmEmbedConfig, DasmScoreConfig
from core.command import parse_first, run_script

if __name__ == "__main__":  # before torch, which takes seconds to import
    parse_first({"embed": DasmEmbedConfig, "score": DasmScoreConfig})

import numpy as np
import torch
from tqdm import tqdm

from core.errors import InputError
from core.files import Kind, contents, keep_apart, made, own_folder, whole
from core.names import isolated, name_flaw
from core.processes import in_order, num_workers
from core.ranks import pick_device
from core.settings import config_key
from core.stored import check_form, is_text, read_text
from core.tensors import check_weights, read_checkpoint, read_tensors, write_checkpoint
from scores.score_files import ScoreArchive, write_archive
from sed.audio import TRUNCATED, AudioFile, read_samples, resample
from sed.labels import audio_below, check_names, clip_id, find_audio, read_labels, say_left_out
from sed.timeline import ClipScores, classes_of, frame_edges

VERSION = 1  # raise it with any change below that changes scores
WIDTH = 1024  # D, of MGA-CLAP's text vectors; the audio checkpoint wants 768
CLIPS_PER_PART = 128  # what a killed run has to score again at most
PARTS = Kind("folder of DASM's scores")
PROMPT = "sound of "

# ---------------------------------------------------------------------------- foreign code

# Imported by the checkouts, never used on the way from audio or text to scores. The newest
# torchaudio needs a CUDA runtime, so it cannot even be imported beside a CPU build of torch.
DASM_UNUSED = ("torchaudio", "torchvision")
# MGA-CLAP imports a module that sed_scores_eval no longer has.
MGA_UNUSED = ("wandb", "loguru", "sentence_transformers", "ruamel", "sed_scores_eval")


class StandIn(types.ModuleType):
    """An empty module for `import` lines; what is taken out of it cannot be used."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        used = f"the checkout uses {self.__name__}.{name}"

        def refuse(*_: Any, **__: Any) -> None:
            raise InputError(f"{used}, which DASM should not need; another version?")

        return type(name, (), {"__init__": refuse})


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an empty module for every name below the given packages."""

    def __init__(self, packages: tuple[str, ...]) -> None:
        self.packages = set(packages)

    def find_spec(self, fullname: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] in self.packages:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> StandIn:
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


def _refuse_others(packages: tuple[str, ...], root: Path) -> None:
    """InputError where a package of the checkout's name came from somewhere else."""
    for name in filter(sys.modules.get, packages):
        module = sys.modules[name]
        home = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), "")
        if not Path(home).resolve().is_relative_to(root):
            raise InputError(
                f"a package named {name!r} from {home or 'nowhere'} is already loaded;"
                " run dasm.py as its own process"
            )


@contextmanager
def foreign_code(root: Path, packages: tuple[str, ...], unused: tuple[str, ...]) -> Iterator[None]:
    """Inside, `packages` are imported from the checkout `root`, `unused` ones from nowhere.

    Raises InputError where another package of that name is loaded or a package is not installed.
    """
    root = root.resolve()
    _refuse_others(packages, root)
    finder = StandIns(unused)
    # The real ones may be loaded, in a process that does other things too: they come back below.
    loaded = [name for name in sys.modules if name.partition(".")[0] in unused]
    real = {name: sys.modules.pop(name) for name in loaded}
    sys.path.insert(0, str(root))
    sys.meta_path.insert(0, finder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of code that the user has not written
            yield
        _refuse_others(packages, root)
    except ImportError as error:
        _refuse_others(packages, root)
        name = (error.name or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and name and name not in packages:
            raise needs(name) from None
        raise InputError(f"{root}: cannot be imported ({squeezed(error)})") from None
    finally:
        sys.path.remove(str(root))
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, StandIn)]:
            del sys.modules[name]
        sys.modules.update(real)


@contextmanager
def hidden(packages: tuple[str, ...]) -> Iterator[None]:
    """Inside, the packages seem not to be installed (those that are loaded already stay)."""
    names = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(names))
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


def squeezed(error: Exception) -> str:
    """What an error of others says, on one line."""
    return " ".join(str(error).split())


def needs(package: str) -> InputError:
    """What is raised where a package of requirements-dasm.txt is missing."""
    cure = "Install the packages listed in docs/dasm.md"
    return InputError(f"DASM needs the package {package!r} (not installed). {cure}")


# ---------------------------------------------------------------------------- files of others


def require_file(flag: str, path: Path) -> Path:
    """The path of a weights or query file; InputError if it is absent or not fetched."""
    if not path.is_file():
        raise InputError(f"{flag} {path}: not found")
    with open(path, "rb") as stream:
        if stream.read(18) == b"version https://gi":
            size = path.stat().st_size
            raise InputError(
                f"{path} is a Git LFS pointer ({size} bytes), not weights: run git lfs pull"
            )
    return path


def sha256_of(*paths: Path) -> str:
    """Hash over the contents of files in the given order."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def read_yaml(path: Path, root: Path) -> dict[str, Any]:
    """A YAML file with its `include: {base_path, keys}` filled in.

    `base_path` is looked for beside the file, then below `root`. InputError where a file is absent,
    or no settings.
    """
    try:
        yaml = importlib.import_module("yaml")  # of requirements-dasm.txt
    except ImportError:
        raise needs("yaml") from None
    try:
        content = yaml.safe_load(read_text(path))
        include = content.pop("include", None)
        if include is not None:
            beside = path.parent / include["base_path"]
            base = read_yaml(beside if beside.is_file() else root / include["base_path"], root)
            content |= {key: base[key] for key in include["keys"]}
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({squeezed(error)})") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: cannot be used ({error!r})") from None
    return content


# ---------------------------------------------------------------------------- queries


class Queries(NamedTuple):
    """What the model is asked for: a class, its prompt and its vector."""

    classes: list[str]
    prompts: list[str]
    vectors: torch.Tensor  # (K, D) float32


def prompt_of(name: str, style: str) -> str:
    """`Running_water` -> `sound of running water`; style `raw` leaves the underscore."""
    return PROMPT + (name if style == "raw" else name.replace("_", " ")).lower()


def read_query_file(path: Path, style: str) -> dict[str, str]:
    """Text file, a class a line, its own prompt after a tab -> prompt of each class, in order."""
    prompts: dict[str, str] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        name, _, prompt = (part.strip() for part in line.partition("\t"))
        if not line.strip():
            continue
        if not name or name in prompts:
            what = f"class {name!r} occurs twice" if name else "a prompt without a class"
            raise InputError(f"{path} line {number}: {what}")
        if flaw := name_flaw(name):
            raise InputError(f"--query-file {path}: the class name {name!r} {flaw}")
        prompts[name] = prompt or prompt_of(name, style)
    if not prompts:
        raise InputError(f"--query-file {path}: no class in it")
    return prompts


def load_queries(path: Path, wanted: list[str]) -> Queries:
    """Read what `embed` wrote; InputError for another width or a wanted class without vector."""
    content = read_checkpoint(require_file("--queries", path))
    try:
        check_form(content, {"classes": [is_text], "prompts": [is_text]})
        classes, prompts = list(content["classes"]), list(content["prompts"])
        vectors = content["vectors"].float()
        num_rows, width = vectors.shape
    except (KeyError, TypeError, AttributeError, ValueError):
        raise InputError(f"queries {path}: not a file of python dasm.py embed") from None
    if width != WIDTH:
        raise InputError(f"queries {path}: {num_rows} x {width}, the model wants width {WIDTH}")
    for name in wanted:
        if name not in classes:
            has = ", ".join(classes)
            raise InputError(f"queries {path}: no vector for {name} (has: {has})")
    return Queries(classes, prompts, vectors)


def on_device(_: torch.nn.Module, args: tuple, more: dict[str, Any]) -> tuple[tuple, dict]:
    """A hook that tells MGA-CLAP's sparsemax where its input lies: by itself it takes CUDA."""
    return args, more | {"device": args[0].device}


def load_text_encoder(cfg: DasmEmbedConfig, device: torch.device) -> torch.nn.Module:
    """MGA-CLAP with its weights. InputError for a wrong checkout, BERT folder or weights file."""
    for name in ("models/ase_model.py", "settings/inference_sed.yaml"):
        if not (cfg.mga_clap / name).is_file():
            what = f"{name} not found; give the root of an MGA-CLAP checkout"
            raise InputError(f"--mga-clap {cfg.mga_clap}: {what}")
    require_file("--mga-weights", cfg.mga_weights)
    if not (cfg.bert / "config.json").is_file():
        what = "no config.json; give the folder of bert-base-uncased"
        raise InputError(f"--bert {cfg.bert}: {what}")
    settings = read_yaml(cfg.mga_clap / "settings" / "inference_sed.yaml", cfg.mga_clap)
    settings["text_encoder_args"]["type"] = str(cfg.bert)
    # transformers takes any torchvision, also one of another torch build
    with hidden(DASM_UNUSED), foreign_code(cfg.mga_clap, ("models", "tools"), MGA_UNUSED):
        texts = importlib.import_module("models.text_encoder")
        bert, tokenizer, width = texts.MODELS["bert-base-uncased"]

        def from_config(folder: str, **options: Any) -> torch.nn.Module:
            return bert(bert.config_class.from_pretrained(folder), **options)

        unfilled = types.SimpleNamespace(from_pretrained=from_config)  # MGA-CLAP has the weights
        texts.MODELS[str(cfg.bert)] = (unfilled, tokenizer, width)
        try:
            model = importlib.import_module("models.ase_model").ASE(settings)
        except (OSError, ValueError) as error:  # what transformers raises for a folder it rejects
            raise InputError(f"--bert {cfg.bert}: cannot be used ({squeezed(error)})") from None
    try:
        content = read_tensors(cfg.mga_weights, device, cfg.trust_pickle)
    except InputError as error:
        cure = "if you trust where it comes from, --trust-pickle loads it all the same"
        raise InputError(f"{error}; {cure}") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise InputError(f"--mga-weights {cfg.mga_weights}: no 'model' in it; is it MGA-CLAP's?")
    known = model.state_dict()  # which older versions of transformers knew more of
    weights = {n: w for n, w in content["model"].items() if n in known or "position_ids" not in n}
    check_weights(known, weights, cfg.mga_weights)
    model.load_state_dict(weights)
    model.msc.attn_activation.register_forward_pre_hook(on_device, with_kwargs=True)
    return model.eval().to(device)


def embed(cfg: DasmEmbedConfig) -> None:
    """Class names -> text vectors, written once. Raises InputError for input it cannot use."""
    if cfg.query_file is not None:
        prompts = read_query_file(cfg.query_file, cfg.prompt_style)
    else:
        names = classes_of(read_labels(cfg.classes_from))
        prompts = {name: prompt_of(name, cfg.prompt_style) for name in names}
        if not prompts:
            raise InputError(f"--classes-from {cfg.classes_from}: no events, so no classes")
    if cfg.out.exists() or cfg.out.is_symlink():
        raise InputError(f"--out {cfg.out}: is there already; remove it or give another name")
    device = pick_device(cfg.device, num_workers(cfg.threads))
    model = load_text_encoder(cfg, device)
    with torch.inference_mode():
        _, words, mask = model.encode_text(list(prompts.values()))
        pooled = model.msc(words, model.codebook, mask)
        vectors = torch.nn.functional.normalize(pooled, dim=-1).cpu().float()  # (K, D)
    if not vectors.isfinite().all():
        raise InputError(f"--mga-weights {cfg.mga_weights}: vectors that are not finite")
    content = {
        "classes": list(prompts),
        "prompts": list(prompts.values()),
        "vectors": vectors,
        "weights": sha256_of(cfg.mga_weights),
    }
    with made(cfg.out.parent), whole(cfg.out) as temporary:
        write_checkpoint(temporary, content)
    for name, prompt in prompts.items():
        print(f"  {isolated(name)}: {isolated(prompt)}")
    print(f"{len(prompts)} queries of width {vectors.shape[1]} -> {cfg.out}")


# ---------------------------------------------------------------------------- the model


MODEL_FILE = Path("src/models/detect_any_sound/detect_any_sound_htast.py")  # in the checkout


class Settings(NamedTuple):
    """What the user's config.yaml says."""

    init: dict[str, Any]  # arguments of DASM_HTSAT
    sample_rate: int
    clip_s: float  # length of what the model takes
    frame: int  # samples of an output frame
    num_frames: int  # T, of a whole clip

    @property
    def num_samples(self) -> int:
        """S, of a whole clip."""
        return round(self.clip_s * self.sample_rate)

    @property
    def frame_s(self) -> float:
        """Length of an output frame in seconds."""
        return self.frame / self.sample_rate


def one_table_only(width: Any) -> InputError:
    """The refusal of a checkpoint for audio queries, or for both kinds."""
    cure = f"only text checkpoints with one 407 x {WIDTH} table are supported"
    return InputError(f"this checkpoint expects queries of width {width}; {cure}")


def read_settings(path: Path, repo: Path) -> Settings:
    """The user's config.yaml. InputError names an absent key, or says that it is another model."""
    content = read_yaml(require_file("--dasm-config", path), repo)
    try:
        init = dict(content["DASM_HTSAT"]["init_kwargs"])
        feature = content["feature"]
        sample_rate, clip_s = int(feature["sr"]), float(feature["audio_max_len"])
        hop, subsample = int(feature["hopsize"]), int(feature["net_subsample"])
        width, base = init["at_param"]["query_dim"], init["class_num"]
        several = isinstance(init["at_param"].get("query"), list)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"cannot be used ({error!r})"
        raise InputError(f"{path.name}: {what}; is this the text_query config?") from None
    if width != WIDTH or several:
        raise one_table_only(width)
    if init.get("mlm_dict") is not None:
        what = "mlm_dict is set, so this model does not detect"
        raise InputError(f"{path.name}: {what}; is this the text_query config?")
    init["at_param"]["query"] = torch.zeros(base, width)  # the checkpoint has the real ones
    # Transformer4SED, src/codec/encoder.py, n_frames
    num_frames = int(math.ceil(clip_s * sample_rate / 2 / hop) * 2 / subsample)
    return Settings(init, sample_rate, clip_s, hop * subsample, num_frames)


def load_model(cfg: DasmScoreConfig, settings: Settings, device: torch.device) -> torch.nn.Module:
    """DASM with its weights, ready to score. InputError for a checkout or weights that do not fit.

    Its constructor reads two more weight files, which the checkpoint then overwrites; here it is
    kept from both.
    """
    state = read_tensors(cfg.dasm_weights, device)
    if not isinstance(state, dict):
        raise InputError(f"{cfg.dasm_weights}: no weights by name in it")
    if "at_query.0" in state:
        raise one_table_only([state[key].shape[1] for key in ("at_query.0", "at_query.1")])
    base = getattr(state.get("at_query"), "shape", (0, WIDTH))
    if base[-1] != WIDTH:
        raise one_table_only(base[-1])
    with foreign_code(cfg.dasm_repo, ("src",), DASM_UNUSED):
        module = importlib.import_module(".".join(MODEL_FILE.with_suffix("").parts))

        class WithoutFiles(module.DASM_HTSAT):
            def _init_transformer_backbone(self, _: dict[str, Any]) -> None:
                self.backbone = module.create_htsat_model(module.CLAPAudioCfp)

        try:
            model = WithoutFiles(**settings.init)
        except (InputError, ImportError):
            raise
        except Exception as error:  # another project's code may raise anything here
            what = f"DASM_HTSAT cannot be built ({type(error).__name__}: {error})"
            raise InputError(f"{cfg.dasm_config}: {what}") from None
    check_weights(model.state_dict(), state, cfg.dasm_weights)
    model.load_state_dict(state)
    return model.eval().to(device)  # without eval, parts of the spectrogram are masked at random


class Scorer:
    """DASM asked for fixed classes. `scores` takes batches of mono clips of any length up to S."""

    def __init__(
        self, model: torch.nn.Module, settings: Settings, vectors: torch.Tensor, temperature: float
    ) -> None:
        self.model, self.settings, self.temperature = model, settings, temperature
        base = model.at_query  # (N, D): without them the scores are plausible and wrong
        self.num_base, self.num_classes, self.device = len(base), len(vectors), base.device
        self.query = torch.cat([base.detach(), vectors.to(base.device)])  # (N + K, D)
        # (N + K, N + K), true where a row may not look at a column: no query of ours is seen by
        # another one, so a class's score does not depend on what else is asked for.
        self.mask = ~torch.eye(len(self.query), dtype=torch.bool, device=base.device)
        self.mask[:, : self.num_base] = False
        self.check()

    def frames_of(self, num_samples: int) -> int:
        """Frames that a clip of so many samples fills, the last one perhaps in part."""
        return min(-(-num_samples // self.settings.frame), self.settings.num_frames)

    @torch.inference_mode()
    def forward(self, wavs: list[np.ndarray], padding: bool = True) -> tuple:
        """Clips (S,) -> frame scores (B, N + K, T) and clip-level scores (B, N + K)."""
        # A clip that is not padded would be stretched in time to 10 s.
        batch = np.zeros((len(wavs), self.settings.num_samples), np.float32)
        for row, wav in zip(batch, wavs, strict=True):
            row[: len(wav)] = wav[: len(row)]
        counts = torch.tensor([self.frames_of(len(wav)) for wav in wavs])
        padded = torch.arange(self.settings.num_frames) >= counts[:, None]  # (B, T)
        mel = self.model.get_feature_extractor()(torch.from_numpy(batch).to(self.device))
        strong, _, others = self.model(
            input=mel,
            temp_w=self.temperature,
            pad_mask=padded.to(self.device) if padding else None,
            query=self.query,
            query_type="text",
            tgt_mask=self.mask,
        )
        return strong, others["at_out"]

    def check(self) -> None:
        """InputError where the model's output is not what config and queries say."""
        silence = np.zeros(self.settings.num_samples, np.float32)
        try:
            strong, tag = self.forward([silence], padding=False)
            (_, rows, num_frames), tags = strong.shape, tag.shape[-1]
        except Exception as error:  # another project's code may raise anything here
            if isinstance(error, InputError) or "out of memory" in str(error).lower():
                raise
            reason = f"{type(error).__name__}: {squeezed(error)}"
            raise InputError(f"the model fails on a clip of silence ({reason})") from None
        if num_frames != self.settings.num_frames:
            raise InputError(
                f"model gives {num_frames} frames, config says {self.settings.num_frames}:"
                " backbone_upsample_ratio and net_subsample disagree"
            )
        if {rows, tags} != {self.num_base + self.num_classes}:
            what = f"{self.num_base} base and {self.num_classes} own queries"
            raise InputError(f"model gives {rows} rows and {tags} tags for {what}")

    def scores(self, wavs: list[np.ndarray]) -> list[ClipScores]:
        """Scores of our classes, padded frames dropped; values that are not finite stay in."""
        strong, tag = (x[:, self.num_base :].float().cpu().numpy() for x in self.forward(wavs))
        found = []
        for wav, values, tags in zip(wavs, strong, tag, strict=True):
            filled = self.frames_of(len(wav))
            edges = frame_edges(filled, self.settings.frame_s)
            found.append(ClipScores(values[:, :filled].copy(), edges, tags.copy()))
        return found


# ---------------------------------------------------------------------------- clips


LEAVE_OUT = "--allow-missing leaves them out and lists them"


def wanted_clips(cfg: DasmScoreConfig) -> tuple[list[str], list[str]]:
    """File names to score and the classes that their labels name (none without labels)."""
    if not cfg.audio.is_dir():
        raise InputError(f"--audio {cfg.audio}: no such folder")
    clips = {} if cfg.labels is None else read_labels(cfg.labels)
    names, classes = list(clips) or audio_below(cfg.audio), classes_of(clips)
    check_names(names, f"--audio {cfg.audio}")
    return names, classes


def look_at(names: list[str], cfg: DasmScoreConfig, settings: Settings) -> dict[str, Path]:
    """Audio of each clip whose header is in order. InputError names clips that cannot be scored,
    unless they may be left out; then they are printed."""
    found: dict[str, Path] = {}
    low: dict[str, int] = {}  # sample rates below what the mel bands, up to 14 kHz, ask for
    absent, wrong = [], []
    # HTS-AT takes 1024 mel frames where a clip has 1001; up to there the end is cut quietly.
    longest = 1.024 * settings.clip_s
    for name in names:
        path = find_audio(cfg.audio, name)
        if path is None:
            absent.append(name)
            continue
        try:
            with AudioFile(path) as recording:
                rate, duration_s = recording.sample_rate, recording.duration_s
        except ValueError as error:
            wrong.append(f"{name}: {error}")
            continue
        if recording.truncated:
            print(f"  note: {name}: {TRUNCATED}")
        if duration_s >= longest and not cfg.cut_long:
            wrong.append(
                f"{name}: {duration_s:.1f} s; DASM takes {settings.clip_s:g} s."
                f" --cut-long keeps the first {settings.clip_s:g} s"
            )
        else:
            found[name] = path
            if rate < 28_000:
                low[name] = rate
    listing = cfg.labels or cfg.audio
    if absent and not cfg.allow_missing:
        raise InputError(
            f"{len(absent)} of {len(names)} clips in {listing} have no audio under {cfg.audio}"
            f" (first: {absent[0]}). {LEAVE_OUT}"
        )
    if wrong and not cfg.allow_missing:
        more = f" (and {len(wrong) - 1} more such clips)" if len(wrong) > 1 else ""
        raise InputError(f"{wrong[0]}{more}. {LEAVE_OUT}")
    say_left_out([*(f"{name}: no audio" for name in absent), *wrong])
    if not found:
        raise InputError(f"{listing}: no clip is left")
    for name, rate in list(low.items())[:1]:
        what = f"audio is {rate / 1000:g} kHz; DASM was trained on content up to 14 kHz"
        print(f"  note: {what}, scores will shift ({len(low)} clips, first: {name})")
    return found


def read_clip(path: Path, settings: Settings) -> np.ndarray:
    """Audio file -> mono (S,) at the model's rate, at most a clip long. ValueError on bad audio."""
    wav, rate = read_samples(path)
    return resample(wav.mean(axis=1), rate, settings.sample_rate)[: settings.num_samples]


def read_ahead(
    clips: list[tuple[str, Path]], settings: Settings, size: int
) -> Iterator[list[tuple[str, np.ndarray | str]]]:
    """Batches of (name, samples or what is wrong), decoded while the model is at work."""

    def read(clip: tuple[str, Path]) -> tuple[str, np.ndarray | str]:
        name, path = clip
        try:
            return name, read_clip(path, settings)
        except ValueError as error:
            return name, f"{path.name}: {error}"

    with ThreadPoolExecutor(num_workers(None)) as pool:
        found = in_order(pool, read, clips)
        while batch := list(islice(found, size)):
            yield batch


# ---------------------------------------------------------------------------- scoring


def facts_of(cfg: DasmScoreConfig, settings: Settings, queries: Queries) -> dict[str, Any]:
    """What the scores follow from: JSON-ready, written into every part."""
    init = settings.init | {"at_param": settings.init["at_param"] | {"query": None}}
    return {
        "scorer": "DASM",
        "version": VERSION,
        "weights": sha256_of(cfg.dasm_weights),
        "config": config_key(init, settings._replace(init={})),
        "code": sha256_of(*sorted((cfg.dasm_repo / "src" / "models").rglob("*.py"))),
        "queries": hashlib.sha256(queries.vectors.numpy().tobytes()).hexdigest()[:16],
        "prompts": dict(zip(queries.classes, queries.prompts, strict=True)),
        "temperature": cfg.temperature,
        "frame_s": settings.frame_s,
        "audio": str(cfg.audio.resolve()),
    }


def finished(out: Path, classes: list[str], facts: dict[str, Any]) -> tuple[set[str], int]:
    """Ids of the clips that an earlier run has scored, and the number of the next part.

    Raises InputError where `out` holds anything else, or scores of other settings.
    """
    if not out.exists():
        return set(), 0
    if not out.is_dir():
        raise InputError(f"--out {out}: is a file, not a folder")
    parts = sorted(out.glob("part-*.npz"))
    for name in contents(out):
        if out / name not in parts:
            raise InputError(f"--out {out}: holds other files ({name}); give a new folder")
    if not parts:
        return set(), 0
    archive = ScoreArchive(out)
    found = archive.scorer
    changed = [key for key in facts if found.get(key) != facts[key]]
    if archive.classes != classes:
        changed.append("classes")
    if changed:
        raise InputError(
            f"--out {out}: holds scores made with other settings ({', '.join(changed)});"
            " give another folder, or remove it to score again"
        )
    return set(archive.clips()), int(parts[-1].stem.removeprefix("part-")) + 1


def score_clips(
    scorer: Scorer, clips: dict[str, Path], queries: Queries, cfg: DasmScoreConfig, facts: dict
) -> list[str]:
    """Score every clip that has no scores yet, part by part. Returns what is wrong with others.

    A run that is stopped keeps what it has scored; nothing half-written is left.
    """
    done, first = finished(cfg.out, queries.classes, facts)
    todo = [(name, path) for name, path in clips.items() if clip_id(name) not in done]
    failed: list[str] = []
    ready: list[tuple[str, ClipScores]] = []
    parts = (cfg.out / f"part-{number:05d}.npz" for number in count(first))

    def write_part() -> None:
        write_archive(next(parts), queries.classes, ready, facts)
        ready.clear()

    bar = tqdm(total=len(clips), initial=len(clips) - len(todo), desc="DASM", unit="clip")
    try:
        for batch in read_ahead(todo, scorer.settings, cfg.batch):
            failed += [wav for _, wav in batch if isinstance(wav, str)]
            good = [(name, wav) for name, wav in batch if not isinstance(wav, str)]
            for name, wav in good:
                if not wav.any():
                    tqdm.write(f"  note: {name}: all zero")
            found = scorer.scores([wav for _, wav in good]) if good else []
            for (name, _), scores in zip(good, found, strict=True):
                finite = np.isfinite(scores.values).all(axis=1) & np.isfinite(scores.tag)
                for k in np.flatnonzero(~finite)[:1]:
                    raise InputError(f"{name}: model returned NaN for class {queries.classes[k]}")
                ready.append((clip_id(name), scores))
            if len(ready) >= CLIPS_PER_PART:
                write_part()
            bar.update(len(batch))
    finally:
        bar.close()
        if ready:
            write_part()
    return failed


def score(cfg: DasmScoreConfig) -> None:
    """Score audio files, all classes in one pass. Raises InputError for input it cannot use."""
    if not (cfg.dasm_repo / MODEL_FILE).is_file():
        what = f"{MODEL_FILE} not found; give the root of a Transformer4SED checkout"
        raise InputError(f"--dasm-repo {cfg.dasm_repo}: {what}")
    require_file("--dasm-weights", cfg.dasm_weights)
    keep_apart(cfg.out, [cfg.audio, cfg.labels, cfg.queries, cfg.dasm_repo])
    settings = read_settings(cfg.dasm_config, cfg.dasm_repo)
    names, wanted = wanted_clips(cfg)
    queries = load_queries(cfg.queries, wanted)
    clips = look_at(names, cfg, settings)
    facts = facts_of(cfg, settings, queries)
    done, _ = finished(cfg.out, queries.classes, facts)
    if all(clip_id(name) in done for name in clips):
        print(f"{cfg.out}: all {len(clips)} clips are scored, nothing to do")
        return
    device = pick_device(cfg.device, num_workers(cfg.threads))
    model = load_model(cfg, settings, device)
    scorer = Scorer(model, settings, queries.vectors, cfg.temperature)
    with own_folder(cfg.out, PARTS):
        failed = score_clips(scorer, clips, queries, cfg, facts)
    say_left_out(failed)
    if failed and not cfg.allow_missing:
        raise InputError(
            f"{len(failed)} of {len(clips)} clips could not be scored (first: {failed[0]}), the"
            f" others are in {cfg.out}. {LEAVE_OUT}"
        )
    num_done = len(clips) - len(failed)
    print(f"{num_done} of {len(names)} clips, {len(queries.classes)} classes -> {cfg.out}")


def main(cfg: DasmEmbedConfig | DasmScoreConfig) -> None:
    """Run the chosen command."""
    embed(cfg) if isinstance(cfg, DasmEmbedConfig) else score(cfg)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a warning at the end otherwise
    run_script({"embed": DasmEmbedConfig, "score": DasmScoreConfig}, main)
