"""Active learning with a bandit DQN: which images are worth a label?

Run:    python -m studies.active_learning [compare | steps | repeats | evaluate | draw]
Reads:  a data set (images.py), downloaded where it is missing
Writes: <out>/seed-<s>/<strategy>/{state.pt, classifier.pt}, <out>/<command>/{table.md,
        results.json, accuracy.tsv, accuracy.png}
Shapes: N training images, L labelled, K classes; per cycle, seed and strategy an accuracy

A cycle trains the classifier on the labelled images, tests it, and buys labels for the next one.
Runs of a seed share the first labels, and in each cycle the initial weights and the random draws of
training: strategies differ by what they buy. What is finished is never done again: a stopped
command continues with the cycle that it was in.
"""

import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import as_completed
from dataclasses import fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from core import files
from core.errors import InputError
from core.files import Kind, keep_apart, own_folder, write_text
from core.processes import num_workers, process_pool
from core.ranks import pick_device
from core.settings import to_dict
from core.stored import is_count, read_json, write_json
from core.versions import processor, versions
from policy.runfolder import differences, digest, load_weights, read_checkpoint, write_checkpoint
from studies.active_learning import strategies, tables
from studies.active_learning.classifier import (
    Classifier,
    fit,
    make_classifier,
    normalisation,
    predict,
)
from studies.active_learning.images import PART, Images, load_images, to_device, write_cifar
from studies.active_learning.settings import (
    CompareConfig,
    DatasetName,
    DrawConfig,
    EvaluateConfig,
    Protocol,
    RepeatsConfig,
    StepsConfig,
    StrategyName,
    Study,
    settle,
)
from studies.active_learning.strategies import Selector, View

STUDY = Kind("study of active learning", older=(("seed-*/first.pt", ""),))
LABELS, WEIGHTS, TRAINING, QUERY, AGENT = range(5)  # what a generator is for


def generator(seed: int, purpose: int, cycle: int = 0) -> np.random.Generator:
    """Random numbers that depend on nothing but these three: no state needs saving."""
    return np.random.default_rng([seed, purpose, cycle])


def torch_seed(rng: np.random.Generator) -> int:
    """A seed for torch."""
    return int(rng.integers(2**63 - 1))


def on_device(rng: np.random.Generator, device: torch.device) -> torch.Generator:
    """A generator for draws on the device."""
    return torch.Generator(device).manual_seed(torch_seed(rng))


class Run(NamedTuple):
    """One strategy with one seed."""

    seed: int
    strategy: StrategyName
    steps: int  # gradient steps of the DQN after each query; 0 where there is none
    warm: int = 0  # queries that the uncertainty rule makes before the DQN

    @property
    def name(self) -> str:
        """dqn-200, dqn-warm3-200, margin, .."""
        warm = str(self.warm or "")
        return f"{self.strategy}{warm}-{self.steps}" if self.steps else self.strategy

    def folder(self, cfg: Study) -> Path:
        """Where it keeps its files."""
        return cfg.folder / f"seed-{self.seed}" / self.name


class Bench(NamedTuple):
    """What all runs of a process share."""

    images: Images
    norm: tuple[torch.Tensor, torch.Tensor]
    key: str  # digest of images and labels
    device: torch.device


def open_bench(dataset: DatasetName, folder: Path | None, device: torch.device) -> Bench:
    """Load a data set."""
    images = load_images(dataset, folder)
    key = digest([images.train, images.train_labels, images.test, images.test_labels])
    images = to_device(images, device)
    return Bench(images, normalisation(images.train), key, device)


worker_bench = cache(open_bench)  # once in a process


def stored(cfg: Study, run: Run, key: str) -> dict[str, Any]:
    """The settings that a run's numbers depend on."""
    names = {spec.name for spec in fields(Protocol)} - ({"dqn_lr"} if run.steps == 0 else set())
    names |= {"dqn_warm_start"} if run.warm else set()
    kept = {name: value for name, value in to_dict(cfg).items() if name in names}
    mine = {"seed": run.seed, "gradient_steps": run.steps, "dqn_warm_queries": run.warm}
    return kept | mine | {"data": key}


def reopen(path: Path, settings: dict[str, Any], device: torch.device) -> dict[str, Any] | None:
    """What a file of a run holds, None where there is none; InputError for other settings."""
    if not path.exists():
        return None
    state = read_checkpoint(path, device)
    for flag, was, now in differences(json.loads(state["settings"]), settings):
        what = "other images" if flag == "data" else f"--{flag} {was}, not {now}"
        raise InputError(f"{path} was made with {what}; give --overwrite or another --out")
    return state


def new_classifier(cfg: Study, bench: Bench, seed: int, cycle: int) -> Classifier:
    """Weights at the start of a cycle, the same for every strategy of a seed."""
    weights = torch_seed(generator(seed, WEIGHTS, cycle))
    return make_classifier(cfg.network, cfg.width, bench.images, weights, bench.device)


def train(
    classifier: Classifier, labelled: torch.Tensor, run: Run, cycle: int, cfg: Study, bench: Bench
) -> float:
    """Train in place on the labelled images -> accuracy on the test images."""
    draws = on_device(generator(run.seed, TRAINING, cycle), bench.device)
    shown = f"seed {run.seed}, {run.name}, cycle {cycle}" if cfg.workers == 1 else None
    fit(classifier, bench.images, labelled, bench.norm, cfg, draws, shown)
    outlook = predict(classifier, bench.images.test, bench.norm)
    return float(outlook.right(bench.images.test_labels).double().mean())


def begin(seed: int, cfg: Study, bench: Bench) -> dict[str, Any]:
    """The first cycle of a seed: the same for every strategy, so it is trained once."""
    start = Run(seed, "random", 0)
    settings, path = stored(cfg, start, bench.key), start.folder(cfg).parent / "first.pt"
    if (state := reopen(path, settings, bench.device)) is not None:
        return state
    began = time.perf_counter()
    labelled = generator(seed, LABELS).choice(len(bench.images.train), cfg.first, replace=False)
    labelled = torch.from_numpy(labelled).to(bench.device)
    classifier = new_classifier(cfg, bench, seed, 1)
    result = train(classifier, labelled, start, 1, cfg, bench)
    state = {"settings": json.dumps(settings), "labelled": labelled, "accuracy": [result]}
    state |= {"weights": classifier.state_dict(), "seconds": [time.perf_counter() - began]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(path, state)
    return state


def buy(
    classifier: Classifier,
    state: dict[str, Any],
    run: Run,
    selector: Selector | None,
    cfg: Study,
    bench: Bench,
) -> None:
    """Choose images, see their labels, let the DQN learn from them; changes `state`."""
    images, labelled, cycle = bench.images, state["labelled"], len(state["accuracy"])
    everything = torch.arange(len(images.train), device=bench.device)
    unlabelled = everything[~torch.isin(everything, labelled)]
    probabilities, features = predict(classifier, images.train, bench.norm)
    view = View(probabilities[unlabelled], features[unlabelled], features[labelled])
    states = strategies.make_states(view.probabilities)
    uncertain = {name: rule(view.probabilities) for name, rule in strategies.UNCERTAINTY.items()}
    scores = uncertain.get(run.strategy) if selector is None else selector.scores(states)
    # Which of the unlabelled, (per_cycle,):
    rng = generator(run.seed, QUERY, cycle)
    if cycle <= run.warm:
        chosen = strategies.highest(uncertain[cfg.dqn_warm_start], cfg.per_cycle)
    elif scores is not None:
        chosen = strategies.highest(scores, cfg.per_cycle)
    elif run.strategy == "k-centre":
        chosen = strategies.k_centre(view, cfg.per_cycle)
    elif run.strategy == "badge":
        chosen = strategies.badge(view, cfg.per_cycle, on_device(rng, bench.device))
    else:
        few = rng.choice(len(unlabelled), cfg.per_cycle, replace=False)
        chosen = torch.from_numpy(few).to(bench.device)
    bought = unlabelled[chosen]
    errors = probabilities[unlabelled].argmax(1) != images.train_labels[unlabelled]
    wrong = errors[chosen]
    if selector is not None:
        rng = generator(run.seed, AGENT, cycle)
        selector.store(states, chosen, wrong, rng)
        selector.learn(run.steps, rng)
    state["labelled"] = torch.cat([labelled, bought])
    state["wrong"].append(float(wrong.double().mean()))
    likely = strategies.highest(uncertain["margin"], cfg.per_cycle)
    state["as_margin"].append(float(torch.isin(chosen, likely).double().mean()))
    # What nobody knows who buys labels; for the tables only.
    state["wrong_left"].append(float(errors.double().mean()))
    state["ranking"].append(math.nan if scores is None else strategies.ranking(scores, errors))
    state["balance"].append(strategies.balance(images.train_labels[bought], len(images.classes)))


def play(run: Run, cfg: Study, bench: Bench) -> Iterator[int]:
    """Advance a run to its last cycle, saving after each one; yields how many cycles were done
    before, then 1 after each."""
    settings, folder = stored(cfg, run, bench.key), run.folder(cfg)
    state = reopen(folder / "state.pt", settings, bench.device)
    if state is None:
        state = {name: [] for name in tables.QUERIES} | begin(run.seed, cfg, bench)
        state["settings"] = json.dumps(settings)
        folder.mkdir(parents=True, exist_ok=True)
    cycle = len(state["accuracy"])
    yield cycle
    if cycle == cfg.cycles:
        return
    selector = None
    if run.steps:
        weights = torch_seed(generator(run.seed, AGENT))
        selector = Selector(len(bench.images.classes), cfg.dqn_lr, weights, bench.device)
        if "selector" in state:
            selector.restore(state["selector"])
    classifier = new_classifier(cfg, bench, run.seed, cycle)
    classifier.load_state_dict(state["weights"])
    while cycle < cfg.cycles:
        began = time.perf_counter()
        buy(classifier, state, run, selector, cfg, bench)
        cycle += 1
        if not cfg.carry_over:
            classifier = new_classifier(cfg, bench, run.seed, cycle)
        state["accuracy"].append(train(classifier, state["labelled"], run, cycle, cfg, bench))
        state["seconds"].append(time.perf_counter() - began)
        state["weights"] = classifier.state_dict()
        if selector is not None:
            state["selector"] = selector.state()
        if cycle == cfg.cycles:
            save_classifier(folder / "classifier.pt", state, cfg, bench)
            state["weights"] = {}  # they are in classifier.pt now
        write_checkpoint(folder / "state.pt", state)
        yield 1


def save_classifier(path: Path, state: dict[str, Any], cfg: Study, bench: Bench) -> None:
    """The final classifier with all that is needed to apply it."""
    content = {name: getattr(cfg, name) for name in ("dataset", "network", "width")}
    content |= {"classes": list(bench.images.classes), "mean": bench.norm[0], "std": bench.norm[1]}
    content |= {"accuracy": state["accuracy"][-1], "labels": len(state["labelled"])}
    write_checkpoint(path, content | {"versions": versions(), "weights": state["weights"]})


def work(run: Run, cfg: Study, device: torch.device) -> int:
    """A run in a worker process; returns its cycles."""
    return sum(play(run, cfg, worker_bench(cfg.dataset, cfg.data, device)))


def play_all(runs: list[Run], cfg: Study) -> Bench:
    """Bring every run to its end, several at a time where there are CPU cores for it."""
    device = pick_device(cfg.device, cfg.threads)
    torch.backends.cudnn.benchmark = device.type == "cuda"
    bench = open_bench(cfg.dataset, cfg.data, device)
    needs = cfg.first + (cfg.cycles - 1) * cfg.per_cycle
    total, test = len(bench.images.train), len(bench.images.test)
    print(f"{cfg.dataset}: {total:,} training and {test:,} test images; {bench.images.source}")
    if needs > total:
        cure = "fewer --cycles, or a smaller --first or --per-cycle"
        raise InputError(f"{needs:,} labels are to be bought, there are {total:,} images; {cure}")
    if cfg.overwrite:
        for run in runs:
            files.remove_ours(run.folder(cfg), ("state.pt", "classifier.pt"))
            (run.folder(cfg).parent / "first.pt").unlink(missing_ok=True)
    workers = 1 if device.type == "cuda" else min(num_workers(cfg.workers), len(runs))
    cfg = replace(cfg, workers=workers)
    print(f"{len(runs)} runs of {cfg.cycles} cycles, {workers} process(es), device {device}")
    print(f"folder {cfg.folder}; a stopped command continues where it was")
    with tqdm(total=len(runs) * cfg.cycles, desc="Cycles", smoothing=0.05) as bar:
        if workers == 1:
            for run in runs:
                for cycles in play(run, cfg, bench):
                    bar.set_postfix_str(f"seed {run.seed}, {run.name}")
                    bar.update(cycles)
            return bench
        for seed in dict.fromkeys(run.seed for run in runs):  # not by several workers at once
            begin(seed, cfg, bench)
        with process_pool(workers, partial(torch.set_num_threads, cfg.threads)) as pool:
            for job in as_completed([pool.submit(work, run, cfg, device) for run in runs]):
                bar.update(job.result())
    return bench


def finish(runs: list[Run], cfg: Study) -> tables.Finished:
    """Bring every run to its end -> what they say, seeds and strategies in their order."""
    bench = play_all(runs, cfg)
    seeds = list(dict.fromkeys(run.seed for run in runs))
    states: dict[str, list[dict[str, Any]]] = {}  # of each strategy, one a seed
    for run in runs:
        path, settings = run.folder(cfg) / "state.pt", stored(cfg, run, bench.key)
        states.setdefault(run.name, []).append(reopen(path, settings, torch.device("cpu")))

    def gather(key: str) -> dict[str, np.ndarray]:
        return {name: np.array([one[key] for one in found]) for name, found in states.items()}

    labels = cfg.first + cfg.per_cycle * np.arange(cfg.cycles)
    numbers = gather("accuracy"), gather("seconds"), {one: gather(one) for one in tables.QUERIES}
    rule = getattr(cfg, "dqn_warm_start", "margin")  # `steps` and `repeats` have no warm start
    return tables.Finished(seeds, labels, *numbers, rule)


def report(command: str, cfg: Study, outcome: tables.Finished, text: str, **more: Any) -> None:
    """Write and print what came out of a command."""
    folder = cfg.folder / command
    folder.mkdir(parents=True, exist_ok=True)
    runs = list(outcome.seconds.values())  # the first cycle of a seed was done once for all
    seconds = sum(run[:, 1:].sum() for run in runs) + runs[0][:, 0].sum()
    took = f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"
    text += f"\nMade on {processor()}; the trainings took {took}.\n"
    about = {"command": command, "config": to_dict(cfg), "versions": versions()}
    results = about | tables.as_dict(outcome) | more
    files.write_together(
        {
            folder / "table.md": lambda path: write_text(path, text),
            folder / "accuracy.tsv": lambda p: write_text(p, tables.as_tsv(outcome)),
            folder / "results.json": lambda path: write_json(path, results),
        }
    )
    print(f"\n{text}\ntables: {folder}")
    tables.draw(outcome, cfg.dataset, folder / "accuracy.png")


def compare(cfg: CompareConfig) -> None:
    """All strategies on all seeds; a DQN has a row for each of its settings."""
    rows = []
    for name in cfg.strategies:
        counts = cfg.gradient_steps if name.startswith("dqn") else (0,)
        warm = cfg.dqn_warm_queries if name == "dqn-warm" else (0,)
        rows += [(name, count, queries) for queries in warm for count in counts]
    outcome = finish([Run(seed, *row) for seed in range(cfg.seeds) for row in rows], cfg)
    report("compare", cfg, outcome, tables.comparison(outcome))


def steps(cfg: StepsConfig) -> None:
    """Several numbers of gradient steps, and the best of them by the source's rule."""
    rows = [("random", 0), *(("dqn", count) for count in cfg.gradient_steps)]
    outcome = finish([Run(seed, *row) for seed in range(cfg.seeds) for row in rows], cfg)
    wins = tables.wins(outcome)
    best = max(cfg.gradient_steps, key=lambda count: wins[f"dqn-{count}"])
    text = tables.steps_table(outcome, wins, f"dqn-{best}")
    report("steps", cfg, outcome, text, best_steps=best, wins=wins)


def repeats(cfg: RepeatsConfig) -> None:
    """The best number of gradient steps on more seeds."""
    count, path = cfg.gradient_steps, cfg.folder / "steps" / "results.json"
    if count is None:
        cure = "run `steps` first, or give --gradient-steps"
        count = read_json(path, cure).get("best_steps")
        if not is_count(count) or not count:
            raise InputError(f"{path}: damaged (no best_steps); {cure}")
    seeds = range(1, 1 + cfg.repeats)  # 0 chose the number
    rows = ("random", 0), ("margin", 0), ("dqn", count)
    outcome = finish([Run(seed, *row) for seed in seeds for row in rows], cfg)
    report("repeats", cfg, outcome, tables.comparison(outcome), gradient_steps=count)


def evaluate(cfg: EvaluateConfig) -> None:
    """A saved classifier on the test images."""
    device = pick_device(cfg.device, 1)
    if not cfg.classifier.exists():
        raise InputError(f"{cfg.classifier}: not found; a finished run has a classifier.pt")
    content = read_checkpoint(cfg.classifier, device)
    if not {"dataset", "network", "width", "classes", "mean", "std", "weights"} <= set(content):
        raise InputError(f"{cfg.classifier}: not a classifier.pt of this study")
    if content["dataset"] == "digits" and cfg.data is not None:
        raise InputError(f"--data {cfg.data}: left out, as the digits are in scikit-learn")
    images = to_device(load_images(content["dataset"], cfg.data), device)
    classifier = make_classifier(content["network"], content["width"], images, 0, device)
    load_weights(classifier, content["weights"], cfg.classifier)
    outlook = predict(classifier, images.test, (content["mean"], content["std"]))
    right = outlook.right(images.test_labels).double()
    print(f"labels: {content['labels']}")
    print(f"test_images: {len(images.test)}")
    print(f"accuracy: {100 * float(right.mean()):.2f}")
    for number, name in enumerate(images.classes):
        share = right[images.test_labels == number].mean()
        print(f"accuracy_{name.replace(' ', '_')}: {100 * share:.2f}")


def draw(cfg: DrawConfig) -> None:
    """Write a part of a data set."""
    folder = cfg.out or Path("data") / f"{cfg.dataset}-small"
    files.check_replaceable(folder, PART, fresh=True)
    images = load_images(cfg.dataset, cfg.data)
    write_cifar(cfg.dataset, images, cfg.train, cfg.test, folder)
    print(f"{folder}: {cfg.train:,} training and {cfg.test:,} test images of {images.source}")


ALONE = {EvaluateConfig: evaluate, DrawConfig: draw}
STUDIES = {CompareConfig: compare, StepsConfig: steps, RepeatsConfig: repeats}


def main(cfg: Any) -> None:
    """The command that was given."""
    if type(cfg) in ALONE:
        ALONE[type(cfg)](cfg)
        return
    keep_apart(cfg.folder, [cfg.data])
    with own_folder(cfg.folder, STUDY):
        STUDIES[type(cfg)](settle(cfg))
