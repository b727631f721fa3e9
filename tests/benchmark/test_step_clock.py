from __future__ import annotations

import pytest
import torch

from seqrec.benchmark.step_clock import PROFILED_STEPS, WARM_UP_STEPS, StepClock, read_trace


def event(kind: str, name: str, begin: float, duration: float) -> dict[str, object]:
    return {"cat": kind, "name": name, "ts": begin, "dur": duration}


def test_a_trace_is_counted_per_step():
    events = [
        event("kernel", "a", 0, 100),
        event("kernel", "b", 50, 100),  # half of it while the first one runs
        event("gpu_memcpy", "copy", 400, 50),
        event("kernel", "inside", 410, 10),
        event("cuda_runtime", "cudaLaunchKernel", 0, 5),
        event("cuda_driver", "cuLaunchKernelEx", 10, 5),
        event("cuda_runtime", "cudaGraphLaunch", 20, 5),
        event("cuda_runtime", "cudaMemcpyAsync", 30, 5),
        event("cuda_runtime", "cudaStreamIsCapturing", 40, 5),
        event("cuda_runtime", "cudaEventSynchronize", 50, 400),
        event("cuda_runtime", "cudaDeviceSynchronize", 900, 9000),
        event("overhead", "flush", 0, 1000),
        {"ph": "M", "name": "process_name"},
    ]
    found = read_trace(events, host_seconds=2e-3, steps=2)
    assert (found["kernels"], found["launches"]) == (2.0, 2.0)
    assert found["busy_seconds"] == pytest.approx((150 + 50) * 1e-6 / 2)
    assert found["python_seconds"] == pytest.approx((2e-3 - 400e-6) / 2)


def test_a_trace_without_calls_has_no_launches():
    found = read_trace([event("kernel", "a", 0, 10)], host_seconds=1.0, steps=1)
    assert (found["launches"], found["python_seconds"], found["kernels"]) == (None, None, 1.0)


def test_steps_are_timed_between_warm_up_and_profile_and_ops_are_counted_once():
    clock = StepClock(torch.device("cpu"), 4)
    assert clock.total_steps == WARM_UP_STEPS + 4 + PROFILED_STEPS
    x = torch.ones(3)
    for step in range(clock.total_steps):
        clock.start_step()
        # A linear layer is one operation, which calls others.
        torch.nn.functional.linear(x, torch.eye(3))
        clock.finish_step(torch.tensor(float(step)))
    assert len(clock.step_seconds) == 4
    assert all(0 < seconds < clock.first_seconds + 10 for seconds in clock.step_seconds)
    assert clock.losses == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    # The linear layer, the identity matrix, and the two tensors of the loss and its place.
    assert 2 <= clock.figures["ops"] <= 8
    assert clock.device_bytes is None


def test_without_profiled_steps_only_times_are_taken():
    clock = StepClock(torch.device("cpu"), 3, profiled=0)
    for _ in range(clock.total_steps):
        clock.start_step()
        clock.finish_step(torch.zeros(()))
    assert len(clock.step_seconds) == 3
    assert clock.figures == {}
