"""The learner proven: classic reinforcement learning that everybody knows the answers of.

Run:    python -m studies.classic COMMAND (--help lists them)
Reads:  policy.pt (render, score)
Writes: <out>/{policy.pt, result.json}, <out>/{table.md, curves.png}, a GIF
Shapes: S states, A actions

Needs requirements-studies.txt. `--settings` chooses the defaults of the other flags: tuned ones of
this study, or those of its two sources, a lecture and a tutorial. Text and results: README.md.
"""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from core.errors import InputError
from core.files import Kind, check_file, keep_apart, made, own_folder, whole, write_text
from core.names import markdown_table
from core.processes import process_pool
from core.ranks import pick_device
from core.settings import to_dict
from core.stored import read_json, write_json
from core.versions import versions
from studies.classic import agents, mdp, policy_search, settings
from studies.classic.agents import LIMIT, Policy, Report, Trained
from studies.classic.settings import DqnConfig, TrainedConfig, Variant, commands

TRAINED = Kind("training of this study", older=(("result.json", "kept"), ("result.json", "seed")))
TRAININGS = Kind("folder of trainings", older=(("*/result.json", "kept"),))


def show_tabular(name: str, values: np.ndarray, q: np.ndarray) -> None:
    """V, Q and policy; of a large MDP the policy's first states only."""
    if len(q) <= 16:
        for state, row in enumerate(q):
            cells = " ".join("           -" if np.isinf(x) else f"{x:12.8f}" for x in row)
            print(f"state {state:2d}  V {values[state]:12.8f}  Q {cells}")
    actions = " ".join(str(action) for action in q.argmax(1)[:20])
    print(f"policy of {name}: {actions}{' ...' if len(q) > 20 else ''}")


def gap(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference of two tables where both are finite."""
    both = np.isfinite(a) & np.isfinite(b)
    return float(np.abs(a[both] - b[both]).max())


def play_tabular(
    cfg: settings.ValueIterationConfig | settings.QLearningConfig, q: np.ndarray
) -> None:
    """Print what the greedy policy gets in gymnasium's environment; the 3-state MDP never ends."""
    if cfg.env != "three-state":
        returns = mdp.greedy_returns(mdp.make_tabular(cfg.env), q, cfg.episodes, cfg.seed)
        print(f"mean_return: {returns.mean():.4f}")


def run_iteration(cfg: settings.ValueIterationConfig) -> None:
    """Value iteration or Q-value iteration, compared with the analytic solution."""
    world = mdp.as_mdp(mdp.make_tabular(cfg.env).unwrapped.P)
    exact = mdp.analytic(world, cfg.gamma)
    if isinstance(cfg, settings.QValueIterationConfig):
        done = mdp.q_value_iteration(world, cfg.gamma, cfg.tolerance, cfg.sweeps)
        q, values = done.values, done.values.max(1)
    else:
        done = mdp.value_iteration(world, cfg.gamma, cfg.tolerance, cfg.sweeps)
        q, values = mdp.q_of(world, done.values, cfg.gamma), done.values
    show_tabular(cfg.env, values, q)
    print(f"sweeps: {done.sweeps}")
    print(f"largest_difference_to_analytic: {gap(values, exact):.2e}")
    play_tabular(cfg, q)


def run_td(cfg: settings.TdConfig) -> None:
    """TD(0), compared with the analytic solution."""
    env = mdp.make_tabular(cfg.env)
    world = mdp.as_mdp(env.unwrapped.P)
    exact = mdp.policy_values(world, mdp.uniform_policy(world), cfg.gamma)
    found = mdp.td0(env, cfg.gamma, cfg.learning, cfg.seed, progress=True)
    print("V of the random policy:", " ".join(f"{value:.3f}" for value in found[:16]))
    print(f"largest_difference_to_analytic: {gap(found, exact):.4f}")


def run_q_learning(cfg: settings.QLearningConfig) -> None:
    """Q-learning, compared with the analytic solution."""
    env = mdp.make_tabular(cfg.env)
    world = mdp.as_mdp(env.unwrapped.P)
    exact = mdp.q_of(world, mdp.analytic(world, cfg.gamma), cfg.gamma)
    found = mdp.q_learning(env, cfg.gamma, cfg.learning, cfg.seed, progress=True)
    show_tabular(cfg.env, found.max(1), found)
    print(f"largest_difference_to_analytic: {gap(found, exact):.4f}")
    play_tabular(cfg, found)


def run_angle(cfg: settings.AngleConfig) -> None:
    """Print the angle rule's returns."""
    returns = policy_search.angle_returns(cfg.episodes, cfg.max_steps)
    print(f"mean_return: {returns.mean():.3f}")
    print(f"std: {returns.std():.3f}, least {returns.min():.0f}, most {returns.max():.0f}")


def name_of(cfg: TrainedConfig) -> str:
    """Name of a training without its seed, e.g. cartpole-dqn-double-tuned."""
    env = cfg.env.partition("-")[0].lower()
    if isinstance(cfg, settings.GeneticConfig):
        return f"{env}-genetic"
    if isinstance(cfg, settings.ReinforceConfig):
        return f"{env}-reinforce-{cfg.settings}"
    kind = "dqn" if cfg.library == "own" else "sb3"
    return f"{env}-{kind}-{cfg.variant}-{cfg.settings}"


def folder_of(cfg: TrainedConfig) -> Path:
    """Where a training writes."""
    return cfg.out or settings.HOME / f"{name_of(cfg)}-{cfg.seed}"


def solved_mark(env: str, max_steps: int) -> float:
    """Mean return at which gymnasium calls an environment solved."""
    marks = {("CartPole-v1", 200): 195.0, ("CartPole-v1", 500): 475.0}
    return 200.0 if env != "CartPole-v1" else marks.get((env, max_steps), 0.95 * max_steps)


def summary(returns: np.ndarray) -> dict[str, float]:
    """Mean, spread and worst of fresh episodes; `mean_200`: had they been stopped at step 200."""
    found = {"mean": returns.mean(), "std": returns.std(), "min": returns.min()}
    found |= {"mean_200": np.minimum(returns, 200.0).mean()}
    return {name: float(value) for name, value in found.items()}


class Learned(NamedTuple):
    """What a training left for scoring."""

    policy: Policy  # the kept one
    trained: Trained | None  # None: genetic search, which has no checks
    history: dict[str, Any]
    max_steps: int  # of the checks


@contextmanager
def reports(cfg: DqnConfig, progress: bool) -> Iterator[Callable[[Report], None]]:
    """Where a DQN's reports go: printed above the progress bar, and to TensorBoard."""
    board = None
    if cfg.report_every and progress:
        try:
            from torch.utils.tensorboard import SummaryWriter

            board = SummaryWriter(str(folder_of(cfg) / "tensorboard"), purge_step=0)
        except ImportError:
            print("note: no TensorBoard events without its package: pip install tensorboard")

    def say(report: Report) -> None:
        tqdm.write(str(report))
        if board is not None:
            board.add_scalar("score", report.score, report.episode)

    yield say
    if board is not None:
        board.close()


def learn(cfg: TrainedConfig, progress: bool) -> Learned:
    """Train what the command asks for."""
    if isinstance(cfg, settings.GeneticConfig):
        policy, generations = policy_search.genetic(cfg.env, cfg.learning, cfg.seed, progress)
        history = {"generations": [list(one) for one in generations]}
        return Learned(policy, None, history, cfg.learning.max_steps)
    learning, dueling = cfg.learning, None
    if isinstance(cfg, settings.ReinforceConfig):
        trained = policy_search.reinforce(cfg.env, learning, cfg.seed, cfg.checking, progress)
    elif cfg.library == "own":
        dueling = learning.dueling_centre if cfg.dueling else None
        with reports(cfg, progress) as say:
            every = cfg.report_every if progress else None
            trained = agents.dqn(
                cfg.env, learning, cfg.variant, cfg.seed, cfg.checking, progress, every, say
            )
    else:
        trained = agents.sb3_dqn(cfg.env, learning, cfg.seed, cfg.checking, progress)
    policy = Policy(cfg.env, learning.hidden, learning.activation, dueling, trained.kept)
    history = {"checks": trained.checks, "episodes": trained.episodes}
    return Learned(policy, trained, history, min(learning.max_steps, LIMIT[cfg.env]))


def train(cfg: TrainedConfig, progress: bool = True) -> dict[str, Any]:
    """Train, save, load, score on fresh episodes -> the content of result.json."""
    folder = folder_of(cfg)
    with own_folder(folder, TRAINED):
        if (folder / "result.json").exists() and not cfg.overwrite:
            raise InputError(f"{folder} holds an earlier result; give --overwrite or another --out")
        if isinstance(cfg, DqnConfig) and cfg.library != "own":
            agents.check_sb3(cfg.learning, cfg.variant, cfg.report_every)
        pick_device("cpu", 1)
        began = time.perf_counter()
        outcome = learn(cfg, progress)
        seconds = round(time.perf_counter() - began, 1)
        agents.save_policy(folder / "policy.pt", outcome.policy)
        env, network = agents.load_policy(folder / "policy.pt")
        score = summary(agents.fresh_returns(env, network, LIMIT[env], cfg.seed))
        mark = solved_mark(env, outcome.max_steps)
        result = {"name": name_of(cfg), "seed": cfg.seed, "seconds": seconds, "kept": score}
        if outcome.trained:
            last = agents.fresh_returns(env, outcome.trained.network, LIMIT[env], cfg.seed)
            solved = [steps for steps, mean in outcome.trained.checks if mean >= mark]
            result |= {"last": summary(last), "solved_at": solved[0] if solved else None}
            result |= {"steps": outcome.trained.checks[-1][0], "max_steps": outcome.max_steps}
        libraries = ["gymnasium"]
        if isinstance(cfg, DqnConfig) and cfg.library != "own":
            libraries.append("stable_baselines3")
        made_with = versions() | {name: version(name) for name in libraries}
        result |= {"versions": made_with, "config": to_dict(cfg)} | outcome.history
        write_json(folder / "result.json", result)
        return result


def run_training(cfg: TrainedConfig) -> None:
    """Train and print what came out."""
    result = train(cfg)
    for name in (name for name in ("solved_at", "steps") if name in result):
        print(f"{name}: {result[name]}")
    for name in ("kept", "last"):
        if score := result.get(name):
            print(f"{name}_mean_return: {score['mean']:.2f} (std {score['std']:.2f})")
            if cfg.env == "CartPole-v1":
                print(f"{name}_mean_return_at_200: {score['mean_200']:.2f}")
    print(f"results: {folder_of(cfg)}")


def run_score(cfg: settings.ScoreConfig) -> None:
    """Score a policy file on 100 fresh episodes."""
    env, network = agents.load_policy(cfg.policy)
    score = summary(agents.fresh_returns(env, network, LIMIT[env], cfg.seed))
    print(f"mean_return: {score['mean']:.2f} (std {score['std']:.2f}, least {score['min']:.0f})")


def run_render(cfg: settings.RenderConfig) -> None:
    """Write the GIF."""
    keep_apart(cfg.out, [cfg.policy])
    check_file(cfg.out, "GIF8")
    frames, total = agents.film(cfg.policy, cfg.seed, cfg.frames, cfg.every, cfg.width)
    first, *rest = frames
    shown = max(20, 20 * cfg.every)  # milliseconds: a step is 20 ms
    with made(cfg.out.parent), whole(cfg.out) as temporary:
        first.save(
            temporary, format="GIF", save_all=True, append_images=rest, duration=shown, loop=0
        )
    print(f"{cfg.out}: {len(frames)} pictures, {cfg.out.stat().st_size / 1000:.0f} kB")
    print(f"return: {total:.0f}")


def rows_of(cfg: settings.TableConfig) -> dict[str, list[TrainedConfig]]:
    """Row of the table -> its trainings, one a seed."""
    rows = cartpole_rows() if cfg.env == "CartPole-v1" else lunar_rows(cfg.env)
    return {
        row: [
            replace(one, seed=seed, out=cfg.out / f"{name_of(one)}-{seed}")
            for seed in range(cfg.seeds)
        ]
        for row, one in rows.items()
    }


def lunar_rows(env: str) -> dict[str, TrainedConfig]:
    """LunarLander: the DQN with settings of its own, its extensions, plain REINFORCE."""
    tuned = commands(["--env", env])
    dqn, reinforce = (replace(tuned[name], env=env) for name in ("dqn", "reinforce"))
    extended = replace(dqn, double=True, dueling=True, prioritized=True)
    return {"DQN plain": dqn, f"DQN {extended.variant}": extended, "REINFORCE": reinforce}


def cartpole_rows() -> dict[str, TrainedConfig]:
    """CartPole: tuned learners, those of stable-baselines3, and the sources' settings."""
    tuned = commands([])
    rows: dict[str, TrainedConfig] = {"REINFORCE": tuned["reinforce"]}
    single = [Variant(double=True), Variant(dueling=True), Variant(prioritized=True)]
    for on in (Variant(), *single, Variant(True, True, True)):
        rows[f"DQN {on}"] = replace(tuned["dqn"], **on._asdict())
    rows["DQN plain, stable-baselines3"] = replace(tuned["dqn"], library="stable-baselines3")
    for command, source in (("reinforce", "lecture"), ("dqn", "lecture"), ("dqn", "tutorial")):
        cfg = commands(["--settings", source])[command]
        rows[f"{command.upper()}, {source}'s settings"] = replace(cfg, settings=source)
    return rows


def is_there(cfg: TrainedConfig) -> bool:
    """Whether this training has ended."""
    return (cfg.out / "result.json").exists()


def result_of(cfg: TrainedConfig) -> dict[str, Any]:
    """The stored result of a training; InputError where its settings were others."""
    path = cfg.out / "result.json"
    result = read_json(path, "delete it")
    wanted, found = json.loads(json.dumps(to_dict(cfg))), dict(result.get("config") or {})
    for where in ("out", "overwrite"):  # of the command alone, they change no number
        wanted.pop(where), found.pop(where, None)
    if found != wanted:
        raise InputError(f"{path} was made with other settings; delete it or give another --out")
    return result


def line_of(row: str, results: list[dict[str, Any]]) -> list[str]:
    """The cells of a line of the table."""
    kept = np.array([result["kept"]["mean"] for result in results])
    last = np.array([result["last"]["mean"] for result in results])
    capped = np.array([result["kept"]["mean_200"] for result in results])
    env = results[0]["config"]["env"]
    marked = kept >= solved_mark(env, LIMIT[env])
    solved = [f"{mark.sum()} of {len(kept)}" for mark in (marked, capped >= 195)]
    at = sorted(result["solved_at"] for result in results if result["solved_at"])
    when = f"{np.median(at):,.0f} ({at[0]:,} to {at[-1]:,})" if at else "-"
    steps = np.mean([result["steps"] for result in results])
    seconds = np.mean([result["seconds"] for result in results])
    spread = [f"{values.mean():.1f} ± {values.std():.1f}" for values in (kept, last, capped)]
    older = [spread[2], solved[1]] * (env == "CartPole-v1")  # only it has a mark at 200 steps
    return [row, solved[0], when, *spread[:2], *older, f"{steps:,.0f}", f"{seconds:.0f}"]


def table_of(results: dict[str, list[dict[str, Any]]]) -> str:
    """The table in Markdown."""
    first = next(iter(results.values()))[0]
    env = first["config"]["env"]
    head = ["learner", f"seeds with {solved_mark(env, LIMIT[env]):g}"]
    head += ["solved at step: median (range)", "kept policy", "last policy"]
    if env == "CartPole-v1":
        head += ["kept, stopped at 200", "seeds with 195 there"]
    head += ["steps trained", "seconds"]
    lines = markdown_table(head, (line_of(row, found) for row, found in results.items()))
    made = {one["versions"].get("processor", "?") for found in results.values() for one in found}
    return "\n".join([*lines, "", f"Made on {' and '.join(sorted(made))}."]) + "\n"


def curve(results: list[dict[str, Any]], every: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps (T,) and the checks of every seed (seeds, T); a stopped seed keeps its last value.

    A check stands where it was due: it comes some steps later, once all lanes have stepped.
    """
    last = max(result["steps"] for result in results) // every
    steps = every * (1 + np.arange(max(last, 1)))
    rows = []
    for result in results:
        at, means = np.array(result["checks"]).T
        due = at // every * every
        rows.append(means[np.clip(np.searchsorted(due, steps, "right") - 1, 0, None)])
    return steps, np.stack(rows)


def draw_curves(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """One panel a row: every seed thin, their mean thick, one standard deviation shaded."""
    from figures.plotting import COLOURS, page, write

    columns = min(len(results), 4)
    env = next(iter(results.values()))[0]["config"]["env"]
    title = f"{env}: mean return of the greedy policy in 100 validation episodes"
    figure, grid = page(title, -(-len(results) // columns), columns, height=9.0, sharey=True)
    for ax in grid.flat[len(results) :]:
        ax.set_axis_off()
    for ax, (row, found) in zip(grid.flat, results.items(), strict=False):
        checking = found[0]["config"]["checking"]["every"]
        steps, returns = curve(found, checking)
        mean, spread = returns.mean(0), returns.std(0)
        ax.plot(steps / 1000, returns.T, color=COLOURS["yardstick"], lw=0.7, alpha=0.6)
        low, high = mean - spread, mean + spread
        if env == "CartPole-v1":
            low, high = np.maximum(low, 0), np.minimum(high, LIMIT[env])
        ax.fill_between(steps / 1000, low, high, color=COLOURS["t_adj"], alpha=0.2, lw=0)
        ax.plot(steps / 1000, mean, color=COLOURS["t_adj"])
        mark = solved_mark(env, found[0]["max_steps"])
        ax.axhline(mark, color=COLOURS["t_base"], ls="--", lw=1.2)
        ax.set_title(row, fontsize=11)
        ax.set_ylim((0, 515) if env == "CartPole-v1" else (-350, 300))
        ax.set_xlim(0, None)
    for ax in grid[:, 0]:
        ax.set_ylabel("mean return")
    note = "thousand steps; thin: seeds (constant after their end), thick: mean, shaded: one"
    figure.supxlabel(f"{note} standard deviation, dashed: solved")
    write(figure, path, 80, f"{env} curves")


def train_missing(cfg: TrainedConfig) -> str:
    """Train unless a result is there, perhaps from a training beside this one -> one line."""
    if not is_there(cfg):
        train(cfg, progress=False)
    result = result_of(cfg)
    text = f"{result['name']}-{result['seed']}: {result['kept']['mean']:.1f} in fresh episodes"
    return f"{text}, solved at {result['solved_at']}, {result['seconds']} s"


def run_table(cfg: settings.TableConfig) -> None:
    """Train what is missing, then table and figure, in a folder that nobody else writes into."""
    from figures.plotting import styled  # it imports the suite, as gym.py does

    with own_folder(cfg.out, TRAININGS):
        rows = rows_of(cfg)
        missing = [one for each in rows.values() for one in each if not is_there(one)]
        if not cfg.present:
            with process_pool(cfg.workers) as pool:
                jobs = [pool.submit(train_missing, one) for one in missing]
                bar = tqdm(as_completed(jobs), total=len(jobs), desc="trainings", disable=not jobs)
                for done in bar:
                    bar.write(done.result())
        results = {
            row: [result_of(one) for one in each if is_there(one)] for row, each in rows.items()
        }
        results = {row: found for row, found in results.items() if found}
        if not results:
            raise InputError(f"{cfg.out} holds no training of the table; leave out --present")
        name = cfg.env.partition("-")[0].lower()
        write_text(cfg.out / f"{name}-table.md", table_of(results))
        styled(draw_curves)(results, cfg.out / f"{name}-curves.png")
        print(table_of(results), end="")
        print(f"table: {cfg.out / f'{name}-table.md'}")


RUN: dict[type, Callable[[Any], None]] = {
    settings.ValueIterationConfig: run_iteration,
    settings.QValueIterationConfig: run_iteration,
    settings.TdConfig: run_td,
    settings.QLearningConfig: run_q_learning,
    settings.AngleConfig: run_angle,
    settings.GeneticConfig: run_training,
    settings.ReinforceConfig: run_training,
    DqnConfig: run_training,
    settings.TableConfig: run_table,
    settings.ScoreConfig: run_score,
    settings.RenderConfig: run_render,
}


def main(cfg: Any) -> None:
    """The command that was given."""
    RUN[type(cfg)](cfg)
