"""The learner proven: classic reinforcement learning that everybody knows the answers of.

Run:    python -m studies.classic COMMAND (--help lists them)
Reads:  policy.pt (render, score)
Writes: <out>/{policy.pt, result.json}, <out>/{table.md, curves.png}, a GIF
Shapes: S states, A actions

Needs requirements-studies.txt. `--settings` chooses the defaults of the other flags: tuned ones of
this study, or those of its two sources, a lecture and a tutorial. Text and results: README.md.
"""

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import as_completed
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from PIL import Image
from tqdm import tqdm

from core.errors import InputError
from core.files import Kind, check_file, keep_apart, made, own_folder, whole, write_text
from core.names import markdown_table
from core.processes import process_pool
from core.ranks import pick_device
from core.settings import to_dict
from core.stored import read_json, write_json
from core.versions import versions
from policy.runfolder import write_checkpoint
from studies.classic import agents, mdp, policy_search, settings
from studies.classic.agents import LIMIT
from studies.classic.settings import DqnConfig, TrainedConfig, commands

TRAINED = Kind("training of this study", older=(("result.json", "kept"), ("result.json", "seed")))
EVERY = 2  # steps of 20 ms between two pictures of a GIF
TRAININGS = Kind("folder of trainings", older=(("*/result.json", "kept"),))


def gap(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference of two tables where both are finite."""
    both = np.isfinite(a) & np.isfinite(b)
    return float(np.abs(a[both] - b[both]).max())


def run_tabular(cfg: settings.ValueIterationConfig | settings.QLearningConfig) -> None:
    """V, Q and policy by value iteration, Q-value iteration or Q-learning, compared with the
    analytic solution; what the greedy policy gets where episodes end."""
    env = mdp.make_tabular(cfg.env)
    world = mdp.as_mdp(env)
    exact = mdp.analytic(world, cfg.gamma)
    if isinstance(cfg, settings.QLearningConfig):
        q = mdp.q_learning(env, cfg.gamma, cfg.learning, cfg.seed)
        values, off = q.max(1), gap(q, mdp.q_of(world, exact, cfg.gamma))
        found = f"largest_difference_to_analytic: {off:.4f}"
    else:
        of_q = isinstance(cfg, settings.QValueIterationConfig)
        q, sweeps = mdp.value_iteration(world, cfg.gamma, cfg.tolerance, cfg.sweeps, of_q)
        values = q.max(1)
        if not of_q:
            q = mdp.q_of(world, values, cfg.gamma)
        found = f"sweeps: {sweeps}\nlargest_difference_to_analytic: {gap(values, exact):.2e}"
    if len(q) <= 16:  # of a large MDP only the policy's first states
        for state, row in enumerate(q):
            cells = " ".join("           -" if np.isinf(x) else f"{x:12.8f}" for x in row)
            print(f"state {state:2d}  V {values[state]:12.8f}  Q {cells}")
    actions = " ".join(str(action) for action in q.argmax(1)[:20])
    print(f"policy of {cfg.env}: {actions}{' ...' if len(q) > 20 else ''}\n{found}")
    if cfg.env != "three-state":  # it never ends
        print(f"mean_return: {mdp.greedy_returns(env, q, cfg.episodes, cfg.seed).mean():.4f}")


def run_td(cfg: settings.TdConfig) -> None:
    """TD(0) of the random policy, compared with the analytic solution."""
    env = mdp.make_tabular(cfg.env)
    world = mdp.as_mdp(env)
    random = world.possible / world.possible.sum(1, keepdims=True)
    exact = mdp.policy_values(world, random, cfg.gamma)
    found = mdp.td0(env, cfg.gamma, cfg.learning, cfg.seed)
    print("V of the random policy:", " ".join(f"{value:.3f}" for value in found[:16]))
    print(f"largest_difference_to_analytic: {gap(found, exact):.4f}")


def run_angle(_: settings.AngleConfig) -> None:
    """Print the returns of pushing the cart to the side that the pole leans to, as in the lecture:
    500 episodes of at most 200 steps, seeds 0, 1, .."""
    env = gymnasium.make("CartPole-v1", max_episode_steps=200)
    returns = mdp.returns_of(env, lambda obs: int(obs[2] >= 0), range(500))
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
    if env != "CartPole-v1":
        return 200.0
    return 195.0 if max_steps == 200 else 0.95 * max_steps  # 475 of 500


def summary(returns: np.ndarray) -> dict[str, float]:
    """Mean, spread and worst of fresh episodes; `mean_200`: had they been stopped at step 200."""
    found = returns.mean(), returns.std(), returns.min(), np.minimum(returns, 200.0).mean()
    return dict(zip(("mean", "std", "min", "mean_200"), map(float, found), strict=True))


LEARNERS: dict[type, Callable[[Any, bool], agents.Trained]] = {
    settings.GeneticConfig: policy_search.genetic,
    settings.ReinforceConfig: policy_search.reinforce,
    DqnConfig: agents.dqn,
}


def train(cfg: TrainedConfig, progress: bool = True) -> dict[str, Any]:
    """Train, save, load, score on fresh episodes -> the content of result.json."""
    folder = folder_of(cfg)
    with own_folder(folder, TRAINED):
        if (folder / "result.json").exists() and not cfg.overwrite:
            raise InputError(f"{folder} holds an earlier result; give --overwrite or another --out")
        pick_device("cpu", 1)
        began = time.perf_counter()
        policy, history, last = LEARNERS[type(cfg)](replace(cfg, out=folder), progress)
        seconds = round(time.perf_counter() - began, 1)
        write_checkpoint(folder / "policy.pt", policy._asdict())
        env, network = agents.load_policy(folder / "policy.pt")
        score = summary(agents.fresh_returns(env, network, cfg.seed))
        result = {"name": name_of(cfg), "seed": cfg.seed, "seconds": seconds, "kept": score}
        if last is not None:
            result["last"] = summary(agents.fresh_returns(env, last, cfg.seed))
            checks, max_steps = history["checks"], agents.longest(cfg)
            mark = solved_mark(env, max_steps)
            result["solved_at"] = next((steps for steps, mean in checks if mean >= mark), None)
            result |= {"steps": checks[-1][0], "max_steps": max_steps}
        made_with = versions() | {"gymnasium": version("gymnasium")}
        if isinstance(cfg, DqnConfig) and cfg.library != "own":
            made_with["stable_baselines3"] = version("stable_baselines3")
        result |= {"versions": made_with, "config": to_dict(cfg)} | history
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
    score = summary(agents.fresh_returns(env, network, cfg.seed))
    print(f"mean_return: {score['mean']:.2f} (std {score['std']:.2f}, least {score['min']:.0f})")


def run_render(cfg: settings.RenderConfig) -> None:
    """Write one greedy episode as a GIF of 16 colours, and print its return.

    Filming stops after `frames` pictures; the episode is played to its end.
    """
    keep_apart(cfg.out, [cfg.policy])
    check_file(cfg.out, "GIF8")
    name, network = agents.load_policy(cfg.policy)
    for driver in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER"):  # the renderer needs no screen, no sound
        os.environ.setdefault(driver, "dummy")
    try:
        env = gymnasium.make(name, render_mode="rgb_array")
        obs, _ = env.reset(seed=mdp.stream(cfg.seed, agents.FRESH))
        env.render()
    except gymnasium.error.DependencyNotInstalled:
        cure = "run: pip install -r requirements-studies.txt"
        raise InputError(f"drawing {name} needs the package pygame-ce; {cure}") from None
    act, pictures, total, step, over = agents.acting(network), [], 0.0, 0, False
    while not over:
        if step % EVERY == 0 and len(pictures) < cfg.frames:
            picture = Image.fromarray(env.render())
            height = round(picture.height * cfg.width / picture.width)
            small = picture.resize((cfg.width, height), Image.Resampling.LANCZOS)
            palette = pictures[0] if pictures else small.quantize(16)
            pictures.append(small.quantize(palette=palette, dither=Image.Dither.NONE))
        obs, reward, terminated, truncated, _ = env.step(int(act(obs[None])[0]))
        total, step, over = total + float(reward), step + 1, terminated or truncated
    env.close()
    first, *rest = pictures
    animation = {"save_all": True, "append_images": rest, "loop": 0, "duration": 20 * EVERY}
    with made(cfg.out.parent), whole(cfg.out) as temporary:
        first.save(temporary, format="GIF", **animation)
    print(f"{cfg.out}: {len(pictures)} pictures, {cfg.out.stat().st_size / 1000:.0f} kB")
    print(f"return: {total:.0f}")


def rows_of(cfg: settings.TableConfig) -> dict[str, list[TrainedConfig]]:
    """Row of the table -> its trainings, one a seed.

    CartPole: tuned learners, the DQN of stable-baselines3, and the sources' settings. LunarLander:
    the DQN, alone and with all extensions, and REINFORCE.
    """
    tuned = commands(["--env", cfg.env])
    dqn, reinforce = (replace(tuned[name], env=cfg.env) for name in ("dqn", "reinforce"))
    extensions = {"double": True, "dueling": True, "prioritized": True}
    extended = replace(dqn, **extensions)
    if cfg.env == "CartPole-v1":
        rows: dict[str, TrainedConfig] = {"REINFORCE": reinforce}
        for one in (dqn, *(replace(dqn, **{name: True}) for name in extensions), extended):
            rows[f"DQN {one.variant}"] = one
        rows["DQN plain, stable-baselines3"] = replace(dqn, library="stable-baselines3")
        for name, source in (("reinforce", "lecture"), ("dqn", "lecture"), ("dqn", "tutorial")):
            one = replace(commands(["--settings", source])[name], settings=source)
            rows[f"{name.upper()}, {source}'s settings"] = one
    else:
        rows = {f"DQN {one.variant}": one for one in (dqn, extended)} | {"REINFORCE": reinforce}
    return {
        row: [
            replace(one, seed=seed, out=cfg.out / f"{name_of(one)}-{seed}")
            for seed in range(cfg.seeds)
        ]
        for row, one in rows.items()
    }


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


def table_of(env: str, results: dict[str, list[dict[str, Any]]]) -> str:
    """The table in Markdown; CartPole alone has a second mark, 195 at 200 steps."""
    mark, older = solved_mark(env, LIMIT[env]), env == "CartPole-v1"
    head = ["learner", f"seeds with {mark:g}", "solved at step: median (range)"]
    head += [
        "kept policy",
        "last policy",
        *["kept, stopped at 200", "seeds with 195 there"] * older,
    ]
    lines, made_on = [], set()
    for row, found in results.items():
        kept, last, capped = (
            np.array([one[policy][score] for one in found])
            for policy, score in (("kept", "mean"), ("last", "mean"), ("kept", "mean_200"))
        )
        spread = [f"{values.mean():.1f} ± {values.std():.1f}" for values in (kept, last, capped)]
        at = sorted(one["solved_at"] for one in found if one["solved_at"])
        when = f"{np.median(at):,.0f} ({at[0]:,} to {at[-1]:,})" if at else "-"
        cells = [row, f"{(kept >= mark).sum()} of {len(found)}", when, *spread[:2]]
        cells += [spread[2], f"{(capped >= 195).sum()} of {len(found)}"] * older
        cells += [f"{np.mean([one[name] for one in found]):,.0f}" for name in ("steps", "seconds")]
        lines.append(cells)
        made_on |= {one["versions"].get("processor", "?") for one in found}
    text = "\n".join(markdown_table([*head, "steps trained", "seconds"], lines))
    return f"{text}\n\nMade on {' and '.join(sorted(made_on))}.\n"


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


def draw_curves(env: str, results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """One panel a row: every seed thin, their mean thick, one standard deviation shaded."""
    from figures.plotting import COLOURS, page, write

    columns = min(len(results), 4)
    title = f"{env}: mean return of the greedy policy in 100 validation episodes"
    figure, grid = page(title, -(-len(results) // columns), columns, height=9.0, sharey=True)
    for ax in grid.flat[len(results) :]:
        ax.set_axis_off()
    for ax, (row, found) in zip(grid.flat, results.items(), strict=False):
        steps, returns = curve(found, found[0]["config"]["checking"]["every"])
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
        results = {}
        for row, each in rows.items():
            if found := [result_of(one) for one in each if is_there(one)]:
                results[row] = found
        if not results:
            raise InputError(f"{cfg.out} holds no training of the table; leave out --present")
        name = cfg.env.partition("-")[0].lower()
        path, text = cfg.out / f"{name}-table.md", table_of(cfg.env, results)
        write_text(path, text)
        styled(draw_curves)(cfg.env, results, cfg.out / f"{name}-curves.png")
        print(f"{text}table: {path}")


RUN: dict[type, Callable[[Any], None]] = {
    settings.ValueIterationConfig: run_tabular,
    settings.QValueIterationConfig: run_tabular,
    settings.TdConfig: run_td,
    settings.QLearningConfig: run_tabular,
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
