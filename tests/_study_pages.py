"""Lines of the pages of studies, made of the committed tables."""

import math
from pathlib import Path

import pandas as pd

DOCS = Path(__file__).parent.parent / "docs"
GAMES = {"pong": "Pong", "breakout": "Breakout", "space_invaders": "Space Invaders"}


def read(name):
    return pd.read_csv(DOCS / "results" / f"{name}.csv")


def _mean_and_error(values):
    values = list(values)
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def estimate(values, digits=3):
    """Return mean and standard error over seeds, in so many digits."""
    mean, spread = _mean_and_error(values)
    if spread is None:
        return f"{mean:#.{digits}g}".rstrip(".")
    places = max(digits - 1 - math.floor(math.log10(abs(mean))), 0) if mean else digits
    return f"{mean:.{places}f} ± {spread:.{places}f}"


def ratio(frame, base, column):
    """Return the mean over seeds of the ratio to the same seed's baseline."""
    paired = frame.set_index("seed")[column] / base.set_index("seed")[column]
    return estimate(paired.dropna(), 2)


def ways_of(part):
    """Return values, stored and default: where there were no queries the default is stored."""
    ways = dict(tuple(part.groupby("where")))
    return ways["values"], ways["stored"], ways.get("queries", ways["stored"])


def atari_lines():
    table = read("atari")
    for game, title in GAMES.items():
        for fraction, part in table[table["game"] == game].groupby("fraction"):
            values, stored, default = ways_of(part)
            cells = [title, f"{round(100_000 * fraction):,}"]
            cells += [estimate(one["test_kl"]) for one in (values, stored, default)]
            cells += [ratio(one, values, "test_kl") for one in (stored, default)]
            cells += [ratio(default, values, "test_merged_disagreement")]
            yield f"| {' | '.join(cells)} |"


def return_lines():
    table = read("atari").dropna(subset=["student_return"])
    for game, title in GAMES.items():
        for fraction, part in table[table["game"] == game].groupby("fraction"):
            if part["where"].nunique() == 1:  # all played with few states and with all alone
                continue
            kinds = ways_of(part)
            cells = [title, f"{round(100_000 * fraction):,}"]
            cells += [estimate(one["student_return"]) for one in kinds]
            cells += [estimate(one["test_visited_kl"], 2) for one in kinds]
            yield f"| {' | '.join(cells)} |"


def time_lines():
    """For each run the processor time, that of 2,000 steps with values only being 1."""
    table = read("atari_time")
    for game, title in GAMES.items():
        for fraction, part in table[table["game"] == game].groupby("fraction"):
            is_unit = (part["method"] == "values") & (part["steps"] == 2000)
            unit = part[is_unit].iloc[0]
            for row in part.sort_values(["method", "steps"]).itertuples():
                share = f"{row.query_share:.0%}" if row.where == "queries" else ""
                cells = [title, f"{round(100_000 * fraction):,}", row.method, share]
                cells += [f"{row.steps:,}", f"{row.cpu_seconds / unit.cpu_seconds:.2f}"]
                cells += [f"{row.test_kl:.3g}", f"{row.test_kl / unit.test_kl:.2f}"]
                yield f"| {' | '.join(cells)} |"


def policy_lines():
    table = read("policies")
    for (env, states), part in table[table["steps"] == 3000].groupby(["env", "states"]):
        methods = dict(tuple(part.groupby("method")))
        values, default = methods["values"], methods["default"]
        cells = [env, f"{states:,}"]
        cells += [estimate(one["test_visited_kl"], 2) for one in (values, default)]
        cells += [ratio(default, values, "test_visited_kl")]
        cells += [estimate(one["student_return"]) for one in (values, default)]
        cells += [", ".join(sorted(set(default["where"])))]
        yield f"| {' | '.join(cells)} |"


def dagger_lines():
    table = read("dagger")
    far = "test_visited_disagreement"
    for (env, rounds), part in table.groupby(["env", "dagger_rounds"]):
        methods = dict(tuple(part.groupby("method")))
        kinds = (methods["values"], methods["default"])
        cells = [GAMES.get(env, env), f"{rounds}", f"{int(part['train_states'].iloc[0]):,}"]
        cells += [estimate(one["test_visited_kl"], 2) for one in kinds]
        has_choice = not part[far].isna().any()
        cells += [estimate(one[far], 2) if has_choice else "" for one in kinds]
        cells += [estimate(one["student_return"]) for one in kinds]
        yield f"| {' | '.join(cells)} |"


KINDS = ("noprop", "direct", "critic", "vfbn", "sobolev", "backprop")
NETWORKS = {
    "image_cnn": "small",
    "image_cnn_bn": "small, batch norm",
    "image_cnn_elu": "small, ELU",
    "image_resnet": "residual",
}
PICTURES = {
    "fashion_mnist": "Fashion-MNIST",
    "fashion_mnist_all": "Fashion-MNIST, all",
    "atari_frames": "Atari frames",
}


def _settings(table):
    """Yield the first cells of a line, and by kind the runs of a setting."""
    for (data, network, cuts), part in table.groupby(["data", "network", "cuts"]):
        yield [PICTURES[data], NETWORKS[network], str(cuts)], dict(tuple(part.groupby("kind")))


def percent(values):
    """Return mean and standard error over seeds, in points with one decimal."""
    mean, spread = _mean_and_error(values)
    return f"{100 * mean:.1f} ± {100 * spread:.1f}"


def accuracy_lines():
    """For each setting the test accuracies, and how far Sobolev is below, paired by seed."""
    for cells, kinds in _settings(read("synthetic_gradients")):
        found = {kind: runs.set_index("seed")["test_accuracy"] for kind, runs in kinds.items()}
        accuracies = [percent(found[kind]) if kind in found else "" for kind in KINDS]
        below = percent(found["backprop"] - found["sobolev"])
        yield f"| {' | '.join([*cells, *accuracies, below])} |"


def cost_lines():
    """For each setting and kind the cosine, and the processor time beside back-propagation's."""
    for cells, kinds in _settings(read("synthetic_gradients")):
        plain = kinds["backprop"]["seconds"].median()
        for kind in ("direct", "critic", "vfbn", "sobolev"):
            cells.append("")
            if (runs := kinds.get(kind)) is not None:
                time = runs["seconds"].median() / plain
                cells[-1] = f"{runs['gradient_cosine'].mean():.2f}, {time:.1f} times"
        yield f"| {' | '.join(cells)} |"


def left_lines():
    """For each change, of one seed or the mean over several, what came out."""
    table = read("synthetic_gradients_left").fillna({"change": "", "amount": 0.0})
    keys = ["data", "network", "kind", "change", "amount", "lr", "steps"]
    for (data, network, kind, change, amount, lr, steps), part in table.groupby(keys):
        what = f"{change} ({amount:g})" if amount else change
        cells = [PICTURES[data], NETWORKS[network], kind, what, f"{lr:g}", f"{steps:,}"]
        cells += [f"{len(part)}"]
        cells += [f"{100 * part[key].mean():.1f}" for key in ("val_accuracy", "test_accuracy")]
        cosine = part["cut_1_cosine"].mean()
        cells += ["" if math.isnan(cosine) else f"{cosine:.2f}"]
        cells += [f"{part['seconds'].median():.0f}"]
        yield f"| {' | '.join(cells)} |"


def waiting_lines():
    """For each delay and way the shares of waiting, the speed and the accuracy."""
    table = read("decoupling")
    for (delay, way), part in table.groupby(["delay", "way"]):
        cells = [way, f"{1000 * delay:.0f} ms" if delay else "0"]
        waits = ("waited_lowest", "waited_highest", "waited")
        cells += [f"{100 * part[key].mean():.0f} %" for key in waits]
        speed, error = _mean_and_error(part["samples_per_second"])
        late = "" if way == "locked" else f"{part['lateness'].mean():.1f}"
        cells += [f"{speed:,.0f} ± {error:,.0f}", late, percent(part["test_accuracy"])]
        yield f"| {' | '.join(cells)} |"
