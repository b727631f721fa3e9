"""`seqrec benchmark recall`: what encoders remember over which distance, and at which cost."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from seqrec.benchmark import harness
from seqrec.benchmark.abilities import ABILITIES, NUM_ITEMS, Ability, Asked
from seqrec.benchmark.harness import Benchmark, Row
from seqrec.benchmark.measurement import run_measured, timed
from seqrec.data.prepare.memory import spoken_bytes
from seqrec.data.progress import Progress, print_line
from seqrec.encoders import ENCODERS, SequenceEncoder
from seqrec.encoders.layers import GatedDeltaNetMixer, LearnedPositions
from seqrec.errors import InputError
from seqrec.types import History

# An ability counts as found above this share of right first answers. Training stops above the other in validation.
FOUND, ENOUGH = 0.9, 0.95
DEFAULT = ("GRU4Rec", "SASRec", "SASRec:rotary=true", "RecMamba", "MambaRec", "MambaRec:mixer=mamba2", "Samba")
# Updates of warm-up; updates between two validations; questions of a validation and of the test.
WARMUP, INTERVAL, JUDGED_QUESTIONS = 100, 100, 1024
# Least filler in training. With less, attention learns places of answers first, and recall at 10 not in 900 updates.
SHORTEST = 10
# Decay of the exponential moving average of the weights, which validation and test judge.
AVERAGING = 0.98


def benchmark_recall(
    lags: Sequence[int] = (10, 100, 1000),
    *,
    encoders: Sequence[str] = DEFAULT,
    abilities: Sequence[str] = tuple(ABILITIES),
    steps: int = 3000,
    lrs: Sequence[float] = (0.001, 0.003),
    seeds: int = 1,
    d_model: int = 64,
    num_layers: int = 2,
    batch_events: int = 4096,
    item_std: float = 0.02,
    pairs: bool = False,
    device: str = "cpu",
    json_file: str | None = None,
) -> None:
    """Train encoders on histories that ask for one ability at a time, and test on others.

    The abilities are delay (the item so many events back), recall (what followed the present item), selection (what
    followed a marker) and count (the item that was marked most often). All items are drawn anew for each history,
    so that nothing else can be learned. `lag` is the number of events of filler that lie in between.

    Each batch of training keeps a random number of things at once, over a random distance from 10 events to `lag`
    (delay: at `lag`). Validation and test keep the most, over `lag`: 32 pairs, 4 markers or 24 marked items. They judge
    an exponential moving average of the weights. Each cell trains in a process of its own until more than .95 of the
    first answers in validation are right, or its updates are used up. The step size is chosen at the first lag. An
    encoder that does not find an ability at one lag is not tried at the next.

    Args:
        lags: Events of filler, ascending.
        encoders: Names, with arguments after a colon where they differ from the defaults, as in
            `MambaRec:mixer=mamba2,d_state=64`. Attention that is not rotary gets learned positions.
        abilities: Some of delay, recall, selection and count.
        steps: Most updates of a cell.
        lrs: Step sizes of Adam to choose from.
        seeds: Seeds from 0 on; the table has their mean.
        d_model: Width.
        num_layers: Blocks.
        batch_events: Events of a batch, at least one history.
        item_std: Standard deviation of the items' vectors at the start.
        pairs: Whether mixers of Gated DeltaNet start as a memory of pairs; see `GatedDeltaNetMixer.start_with_pairs`.
        device: cpu or cuda.
        json_file: File for the figures, as JSON; written anew after each cell.

    Raises:
        InputError: if an argument is out of range, or `pairs` is asked of an encoder without Gated DeltaNet.
    """
    harness.check_numbers(1, lags=lags, empty=False)
    harness.check_numbers(1, steps=steps, seeds=seeds, batch_events=batch_events)
    harness.check_numbers(1, d_model=d_model, num_layers=num_layers)
    harness.check_names(ABILITIES, abilities=abilities)
    _check_numbers(lags, lrs, item_std)
    harness.check_device(device)
    for encoder in encoders:
        built = build_encoder(encoder, d_model, num_layers)
        if pairs:
            _start_with_pairs(built, encoder)
    shared = {"steps": steps, "batch_events": batch_events, "item_std": item_std, "device": device}
    shared |= {"d_model": d_model, "num_layers": num_layers, "pairs": pairs}
    rows = list(itertools.product(abilities, encoders))
    # Cells of an ability and an encoder that is found at every lag.
    most = len(lrs) + len(lags) * seeds - 1
    settings = {**shared, "lrs": list(lrs), "seeds": seeds}
    benchmark = Benchmark(json_file, len(rows) * most, settings=settings, cells=[])

    def measure(cell: Row) -> Row:
        measured = run_measured(find_ability, {**cell, "shared": shared}, show=benchmark.show)
        return {**measured.value, "peak_bytes": measured.peak_resident}

    for left, (ability, encoder) in zip(reversed(range(len(rows))), rows, strict=True):
        cell = {"ability": ability, "encoder": encoder}
        _run_lags(partial(_run, benchmark, measure, cell), lags, lrs, seeds)
        benchmark.stage.total = len(benchmark["cells"]) + left * most
    title = (
        f"share of right first answers, {NUM_ITEMS:,} items; width {d_model}, blocks {num_layers}, batches of "
        f"{batch_events:,} events, at most {steps:,} updates on {device}, seeds: {seeds}; found: above {FOUND:g}"
    )
    asks = "\n".join(f"{name}: {ABILITIES[name].asks}" for name in abilities)
    head = "encoder | ability | lag | found | HR@1 | steps | train s | events/s | lr | state | memory"
    benchmark.finish(title, asks, harness.table(head, map(_cells, _means(benchmark["cells"]))))


def _check_numbers(lags: Sequence[int], lrs: Sequence[float], item_std: float) -> None:
    if list(lags) != sorted(set(lags)):
        raise InputError(f"lags={list(lags)} must be ascending: the step size is chosen at the first")
    if not lrs or not all(lr > 0 for lr in lrs):
        raise InputError(f"lrs={list(lrs)} must be one or more, and all positive")
    if not item_std > 0:
        raise InputError(f"item_std={item_std} must be positive, as in 0.02")


def _run_lags(run: Callable[..., Row], lags: Sequence[int], lrs: Sequence[float], seeds: int) -> None:
    """Choose a step size at the first lag, and continue with longer ones while the ability is found."""
    tried = [run(lag=lags[0], lr=lr, seed=0) for lr in lrs]
    best = max(tried, key=lambda row: (row.get("validation", -1.0), -row.get("train_seconds", 0.0)))
    if harness.failed(best):
        return
    best["chosen"] = True
    for lag in lags:
        rows = [best] if lag == lags[0] else []
        rows += [run(lag=lag, lr=best["lr"], seed=seed) for seed in range(len(rows), seeds)]
        if any(harness.failed(row) for row in rows) or np.mean([row["HR@1"] for row in rows]) <= FOUND:
            return


def _run(benchmark: Benchmark, measure: Callable[[Row], Row], cell: Row, **own: float) -> Row:
    name = "{encoder}, {ability}, {lag:,} events, lr {lr:g}, seed {seed}"
    benchmark.run("cells", [{**cell, **own}], measure, name, _outcome)
    row: Row = benchmark["cells"][-1]
    return row


def _outcome(row: Row) -> str:
    found = "found" if row["HR@1"] > FOUND else "not found"
    return f"{found}, HR@1 {row['HR@1']:.4f} after {row['steps']:,} steps, {row['train_seconds']:,.0f} s"


def _means(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield a row for each ability, encoder and lag: the chosen step size, and means over its seeds."""

    def key(row: Row) -> tuple[Any, ...]:
        return row["ability"], row["encoder"], row["lag"]

    for _, same in itertools.groupby(rows, key):
        group = list(same)
        lr = next((row["lr"] for row in group if row.get("chosen")), group[0]["lr"])
        group = [row for row in group if row["lr"] == lr]
        if any(harness.failed(row) for row in group):
            yield next(row for row in group if harness.failed(row))
            continue
        numbers = ("HR@1", "steps", "events", "train_seconds", "peak_bytes")
        yield group[0] | {name: float(np.mean([row[name] for row in group])) for name in numbers}


def _cells(row: Row) -> list[str]:
    name = [row["encoder"], row["ability"], f"{row['lag']:,}"]
    if harness.failed(row):
        return [*name, harness.DID_NOT_RUN]
    found = ["yes" if row["HR@1"] > FOUND else "no", f"{row['HR@1']:.3f}"]
    cost = [f"{row['steps']:,.0f}", f"{row['train_seconds']:,.0f}", f"{row['events'] / row['train_seconds']:,.0f}"]
    return [*name, *found, *cost, f"{row['lr']:g}", spoken_bytes(row["state_bytes"]), spoken_bytes(row["peak_bytes"])]


def build_encoder(text: str, d_model: int, num_layers: int) -> SequenceEncoder:
    """Return an encoder without dropout, from its name and arguments, as in `MambaRec:mixer=mamba2,d_state=64`.

    Raises:
        InputError: if the name or an argument is unknown, a value is not allowed, or the encoder is bidirectional.
    """
    name, _, given = text.partition(":")
    if ENCODERS[name].bidirectional:
        raise InputError(f"encoders: {name} sees newer events, and so the answers: take a causal encoder")
    pairs = [pair.partition("=") for pair in given.split(",") if pair]
    try:
        return ENCODERS[name](
            d_model, num_layers=num_layers, dropout=0.0, **{key: yaml.safe_load(value) for key, _, value in pairs}
        )
    except TypeError as error:
        raise InputError(f"encoders: {text!r}: {error}; write NAME:argument=value,argument=value") from None


class Answerer(nn.Module):
    """An encoder over a table of items, which also answers: scores are products of normed states and items."""

    def __init__(self, encoder: SequenceEncoder, max_length: int, item_std: float = 0.02) -> None:
        super().__init__()
        self.encoder = encoder
        self.items = nn.Embedding(NUM_ITEMS + 1, encoder.d_model)
        nn.init.normal_(self.items.weight, std=item_std)
        self.norm = nn.LayerNorm(encoder.d_model)
        needs_positions = getattr(encoder, "rotary", None) is False
        self.positions = LearnedPositions(max_length, encoder.d_model) if needs_positions else None

    def forward(self, items: Tensor, asked: Tensor) -> Tensor:
        """Return scores (Q, items) of the events of items (B, L) that `asked` (B, L) bool selects."""
        history = History(items, torch.full((len(items),), items.shape[1], device=items.device))
        x = self.items(items) * self.encoder.d_model**0.5
        x = x if self.positions is None else x + self.positions(history)
        scores: Tensor = self.norm(self.encoder(x, history)[asked]) @ self.items.weight.T
        return scores


def find_ability(ability: str, encoder: str, lag: int, lr: float, seed: int, shared: dict[str, Any]) -> dict[str, Any]:
    """Train one encoder until it has found an ability or its updates are used up, and test it; see `benchmark_recall`.

    Returns:
        `HR@1` of the test, `validation` of the last validation, `steps`, `events` and `train_seconds` of the training,
        and `state_bytes` of a user's stream; 0 if the encoder cannot be streamed.
    """
    torch.manual_seed(seed)
    task, device = ABILITIES[ability], torch.device(shared["device"])
    built = build_encoder(encoder, shared["d_model"], shared["num_layers"])
    if shared["pairs"]:
        _start_with_pairs(built, encoder)
    length = task.draw(1, lag, np.random.default_rng(0)).items.shape[1]
    model = Answerer(built, length, shared["item_std"]).to(device)
    generator = np.random.default_rng([seed, 0])
    judged = _questions(task, lag, np.random.default_rng([seed, 1]))
    averaged = get_ema_multi_avg_fn(AVERAGING)  # type: ignore[no-untyped-call]
    mean = AveragedModel(model, multi_avg_fn=averaged)
    adam = torch.optim.Adam(model.parameters(), lr=lr)
    steps, events, seconds, validation = 0, 0, 0.0, 0.0
    stage = Progress(print_line).stage("training", shared["steps"], unit="steps")
    while steps < shared["steps"] and validation <= ENOUGH:
        for group in adam.param_groups:
            group["lr"] = lr * min(1.0, (steps + 1) / WARMUP)
        batch = _batch(task, lag, shared["batch_events"], generator)
        seconds += timed(partial(_update, model, mean, adam, batch), device)
        steps, events = steps + 1, events + batch.items.numel()
        stage.advance(1)
        if steps % INTERVAL == 0 or steps == shared["steps"]:
            validation = _share_right(mean, judged)
    return {
        "HR@1": _share_right(mean, _questions(task, lag, np.random.default_rng([seed, 2]))),
        "validation": validation,
        "steps": steps,
        "events": events,
        "train_seconds": seconds,
        "state_bytes": _state_bytes(built, length),
    }


def _start_with_pairs(built: SequenceEncoder, encoder: str) -> None:
    mixers = [module for module in built.modules() if isinstance(module, GatedDeltaNetMixer)]
    if not mixers:
        raise InputError(f"pairs=True needs mixer=gated_deltanet, but {encoder!r} has none: leave pairs out")
    for mixer in mixers:
        mixer.start_with_pairs()


def _batch(task: Ability, lag: int, events: int, generator: np.random.Generator) -> Asked:
    """Draw about so many events; the number of things kept and the filler are drawn log-uniformly."""
    kept = _log_uniform(task.most, generator)
    lag = lag if task.names_lag else _log_uniform(lag, generator, least=min(lag, SHORTEST))
    length = task.draw(1, lag, generator, kept).items.shape[1]
    return task.draw(max(1, events // length), lag, generator, kept)


def _log_uniform(most: int, generator: np.random.Generator, least: int = 1) -> int:
    return round(2 ** generator.uniform(np.log2(least), np.log2(most)))


def _update(model: Answerer, mean: AveragedModel, adam: torch.optim.Adam, batch: Asked) -> None:
    device = model.items.weight.device
    items, targets = batch.items.to(device), batch.targets.to(device)
    asked = targets > 0
    if not asked.any():
        return
    model.train()
    adam.zero_grad(set_to_none=True)
    torch.autograd.backward(F.cross_entropy(model(items, asked), targets[asked]))
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    adam.step()
    mean.update_parameters(model)


def _questions(task: Ability, lag: int, generator: np.random.Generator) -> Asked:
    """Return as many histories as ask about `JUDGED_QUESTIONS` questions, at least 8."""
    one = task.draw(8, lag, generator)
    return task.draw(max(8, 8 * JUDGED_QUESTIONS // max(1, int((one.targets > 0).sum()))), lag, generator)


@torch.no_grad()
def _share_right(mean: AveragedModel, judged: Asked) -> float:
    mean.eval()
    device, right, count = next(mean.parameters()).device, 0, 0
    for items, targets in zip(torch.split(judged.items, 8), torch.split(judged.targets, 8), strict=True):
        asked = targets > 0
        best = mean(items.to(device), asked.to(device)).argmax(-1).cpu()
        right += int((best == targets[asked]).sum())
        count += int(asked.sum())
    return right / count


def _state_bytes(encoder: SequenceEncoder, length: int) -> int:
    return encoder.init_state(1, max_length=length).row_bytes if encoder.can_stream else 0
