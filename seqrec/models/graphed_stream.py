"""Steps of a stream on a GPU, each number of users recorded once and then launched as one CUDA graph.

B users, N users of a recording, D width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from seqrec.catalogue.table import ItemEmbedding
from seqrec.encoders.state import State
from seqrec.errors import InputError, check_at_least
from seqrec.models.streaming import StreamingRecommender
from seqrec.training.recorder import CudaRecorder, Recorder, recordings


class GraphedStream:
    """`step` of a model as CUDA graphs, one for each of 1, 2, 4, .. and `max_users` users.

    A step of a stream is some hundred small kernels, which a GPU computes faster than Python starts them. A graph is
    launched at once. Events and states are copied into memory of the graphs, and results out of it: states and outputs
    are those of `step`, of which nothing is overwritten later. Unused rows of a graph compute earlier events again;
    their results are never read. Batches of more than `max_users` users are computed in parts.

    All graphs write the same memory, `max_users` states and outputs, so a lock lets one thread at a time step, and all
    threads must step on one CUDA stream. The weights must not change. Whatever the caller's autocast, a step is
    computed without.

    Args:
        model: A model that can be streamed, in evaluation mode, on a CUDA device.
        max_users: Most users of a graph.
        recorder: Records the steps; None makes CUDA graphs.

    Attributes:
        launches: Graphs launched so far.

    Raises:
        InputError: if the device has no CUDA graphs, the model is in training mode, it cannot be streamed, or a table
            of it is sharded or made of users' columns.

    Example:
        >>> from seqrec import MambaRec
        >>> from seqrec.models.graphed_stream import GraphedStream
        >>> GraphedStream(MambaRec(num_items=20, d_model=8, positions=False).eval())
        Traceback (most recent call last):
            ...
        seqrec.errors.InputError: CUDA graphs need a CUDA device, and the model is on cpu: ...
    """

    def __init__(self, model: StreamingRecommender, *, max_users: int = 256, recorder: Recorder | None = None) -> None:
        check_at_least(1, max_users=max_users)
        device = model.device
        if recorder is None:
            if device.type != "cuda":
                raise InputError(
                    f"CUDA graphs need a CUDA device, and the model is on {device.type}: move it by model.to('cuda'), "
                    "or leave cuda_graphs false"
                )
            recorder = CudaRecorder(device)
        _check(model)
        self.launches = 0
        self._model, self._device, self._recorder = model, device, recorder
        self._max_users = max_users
        # The numbers of users of the graphs.
        self._sizes = [*(1 << power for power in range((max_users - 1).bit_length())), max_users]
        self._launch: dict[int, Callable[[], None]] = {}
        self._lock = threading.Lock()
        with torch.inference_mode():
            start = model.init_state(max_users)
            self._encoder = start.encoder
            # The memory of all graphs: events, states before and then after them, and outputs.
            self._state = {name: x.clone() for name, x in start.tensors.items()}
            self._events: dict[str, Tensor] = {"items": torch.ones(max_users, dtype=torch.int64, device=device)}
            self._events["users"] = torch.zeros_like(self._events["items"])
            self._events["times"] = torch.zeros_like(self._events["items"])
            columns = model.column_embedding
            missing = {} if columns is None else columns.missing(max_users)
            self._features = {name: x.to(device) for name, x in missing.items()}
            self._out = self._computed(max_users)[0].clone()

    @property
    def num_graphs(self) -> int:
        """Number of graphs so far: at most 9 for 256 users."""
        return len(self._launch)

    def prepare(self) -> None:
        """Record the graphs of all numbers of users now, instead of at the first batch of each."""
        with self._lock, torch.inference_mode():
            for users in self._sizes:
                self._graph(users)

    @torch.inference_mode()
    def step(
        self,
        item_ids: Tensor,
        state: State,
        user_ids: Tensor | None = None,
        timestamps: Tensor | None = None,
        features: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, State]:
        """Return what `StreamingRecommender.step` returns.

        Args:
            item_ids: (B,) int64, as of `step`. Events may be on the CPU, where checking them makes no GPU wait.
            state: State after the earlier events, on the model's device; unchanged.
            user_ids: (B,) int64, as of `step`.
            timestamps: (B,) int64, as of `step`.
            features: Columns of the events, as of `step`.

        Raises:
            InputError: if `step` would refuse, or the step cannot be recorded.
        """
        _check_events(len(state), item_ids=item_ids, user_ids=user_ids, timestamps=timestamps)
        self._model.check_step(item_ids, state, timestamps, features)
        self._check_state(state)
        events = {"items": item_ids, "users": user_ids, "times": timestamps}
        given = {name: x for name, x in events.items() if x is not None}
        with self._lock:
            if user_ids is None:
                self._events["users"].zero_()
            found = [self._step(part, given, state, features or {}) for part in self._parts(len(item_ids))]
        if len(found) == 1:
            return found[0][0], State(found[0][1], self._encoder)
        outs, states = zip(*found, strict=True)
        after = {name: torch.cat([each[name] for each in states]) for name in self._state}
        return torch.cat(outs), State(after, self._encoder)

    def _parts(self, count: int) -> Iterator[slice]:
        """Yield the rows of a batch that are computed together; one part for a batch without rows."""
        for first in range(0, max(count, 1), self._max_users):
            yield slice(first, min(first + self._max_users, count))

    def _step(
        self, part: slice, events: Mapping[str, Tensor], state: State, features: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute some rows of a batch."""
        count = part.stop - part.start
        launch = self._graph(count)
        inputs = [(self._events[name], x) for name, x in events.items()]
        inputs += [(own, features[name]) for name, own in self._features.items()]
        for own, x in inputs:
            own[:count].copy_(x[part], non_blocking=True)
        # A few launches for all tensors together.
        names = list(self._state)
        own_states = [self._state[name][:count] for name in names]
        torch._foreach_copy_(own_states, [state.tensors[name][part] for name in names])
        launch()
        self.launches += 1
        results = [self._out[:count], *own_states]
        copies = [torch.empty_like(x) for x in results]
        torch._foreach_copy_(copies, results)
        return copies[0], dict(zip(names, copies[1:], strict=True))

    def _graph(self, count: int) -> Callable[[], None]:
        """Return the launch of the smallest graph that has room for some users, which is recorded if it is not yet."""
        users = next(size for size in self._sizes if size >= count)
        if users not in self._launch:

            def run() -> None:
                with torch.inference_mode():
                    out, after = self._computed(users)
                    own = [self._out[:users], *(self._state[name][:users] for name in after)]
                    torch._foreach_copy_(own, [out, *after.values()])

            (self._launch[users],) = recordings(
                self._recorder,
                [run],
                self._device,
                what=f"the streamed step of {type(self._model).__name__}",
                remedy="leave cuda_graphs false",
            )
        return self._launch[users]

    def _computed(self, users: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return outputs (N, D) and states after the events in the graphs' memory."""
        own = {name: x[:users] for name, x in self._events.items()}
        features = {name: x[:users] for name, x in self._features.items()} or None
        state = State({name: x[:users] for name, x in self._state.items()}, self._encoder)
        with torch.autocast(self._device.type, enabled=False):
            out, after = self._model.checked_step(own["items"], state, own["users"], own["times"], features)
        return out, after.tensors

    def _check_state(self, state: State) -> None:
        """Refuse states that would be copied into those of another shape or type."""
        rows, own = (
            {name: (tuple(x.shape[1:]), str(x.dtype)) for name, x in tensors.items()}
            for tensors in (state.tensors, self._state)
        )
        if rows != own:
            raise InputError(f"state has rows of {rows}, but this model's are {own}; start with `model.init_state`")


def _check_events(rows: int, **events: Tensor | None) -> None:
    """Refuse ids and times that would be rounded, repeated or cut as they are copied; None passes."""
    for name, x in events.items():
        if x is not None and (x.dtype != torch.int64 or x.shape != (rows,)):
            expected = f"(B,) int64 for the state's {rows} rows"
            raise InputError(f"{name} must be {expected}, got {tuple(x.shape)} {x.dtype}")


def _check(model: StreamingRecommender) -> None:
    """Refuse a model with a step that cannot be recorded."""
    tables = [part for part in model.modules() if isinstance(part, ItemEmbedding)]
    if any(table.spread is not None for table in tables):
        raise InputError("CUDA graphs cannot record item_table.sharded, whose rows processes exchange: leave one out")
    if model.users is not None and model.users.content is not None:
        raise InputError("CUDA graphs cannot record user_columns, which are read from the CPU: leave one out")
