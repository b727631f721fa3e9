"""Ranks that torchrun or SLURM start, on one host or two, train as one process does on their joined batches."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cluster_runs
import pytest
import torch
from forked_commands import ForkedCommand, free_port

from seqrec.cli import main

pytestmark = pytest.mark.process

CONFIGS = Path(__file__).parents[1] / "configs"
JOB = Path(cluster_runs.__file__)
HOSTS = ("127.0.0.1", "127.0.0.2")
Results = list[dict[str, Any]]
# What the schedulers of the machine that runs the tests say must not reach the jobs.
SCHEDULERS = (
    "SLURM_",
    "GLOO_",
    "TORCHELASTIC_",
    "MASTER_",
    "WORLD_SIZE",
    "RANK",
    "LOCAL_",
    "NODE_RANK",
    "GROUP_",
)


def plain_environment() -> dict[str, str]:
    """The variables of this process without those of schedulers, for ranks that meet on this machine."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(SCHEDULERS)}
    return plain | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


def run_hosts(
    commands: Sequence[tuple[list[str], dict[str, str]]],
    folder: Path,
    prefixes: Sequence[tuple[str, ...]] = ((), ()),
) -> list[str]:
    """Run each host's Python command at once, in folders `host0`, `host1`, ..; returns what each printed."""
    children = []
    for number, (command, variables) in enumerate(commands):
        (own := folder / f"host{number}").mkdir(exist_ok=True)
        children.append(
            subprocess.Popen(
                [*prefixes[number], sys.executable, "-W", "ignore", *command],
                cwd=own,
                env=plain_environment() | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
    try:
        printed = [child.communicate(timeout=240)[0] for child in children]
    finally:
        for child in children:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
    assert [child.returncode for child in children] == [0] * len(children), "\n".join(printed)
    return printed


def by_torchrun(words: list[str], folder: Path) -> list[str]:
    """One host with two ranks."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return run_hosts([([*torchrun, *words], {})], folder)


def by_two_agents(words: list[str], folder: Path) -> list[str]:
    """A torchrun on each of two hosts, which find each other by a rendezvous."""
    endpoint = f"{HOSTS[0]}:{free_port()}"
    commands = []
    for number, host in enumerate(HOSTS):
        agent = ["--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(number), "--local-addr", host]
        rendezvous = ["--rdzv-backend", "c10d", "--rdzv-id", "job", "--rdzv-endpoint", endpoint]
        is_host = ["--rdzv-conf", f"is_host={1 - number}"]
        commands.append((["-m", "torch.distributed.run", *agent, *rendezvous, *is_host, *words], {}))
    return run_hosts(commands, folder)


def slurm_tasks(words: list[str], hosts: Sequence[str]) -> list[tuple[list[str], dict[str, str]]]:
    """A task on each node, with the variables that `srun` gives it."""
    port = free_port()
    commands = []
    for number in range(len(hosts)):
        variables = {
            "SLURM_JOB_ID": "4242",
            "SLURM_JOB_NAME": "seqrec",
            "SLURM_NNODES": "2",
            "SLURM_NTASKS": "2",
            "SLURM_NTASKS_PER_NODE": "1",
            "SLURM_NODELIST": ",".join(hosts),
            "SLURM_JOB_NODELIST": ",".join(hosts),
            "SLURM_PROCID": str(number),
            "SLURM_LOCALID": "0",
            "SLURM_NODEID": str(number),
            # The only thing that Lightning would make of the job's number, and that another job may have.
            "MASTER_PORT": str(port),
        }
        commands.append((words, variables))
    return commands


def by_slurm(words: list[str], folder: Path) -> list[str]:
    """Two nodes with loopback addresses."""
    if words[:2] != ["-m", "seqrec"]:
        return run_hosts(slurm_tasks(words, HOSTS), folder)
    tasks, logs = [], []
    for number, (_, variables) in enumerate(slurm_tasks(words, HOSTS)):
        (own := folder / f"host{number}").mkdir()
        logs.append(own / "log.txt")
        tasks.append(ForkedCommand(own, *words[2:], log=logs[-1], environment=plain_environment() | variables))
    try:
        assert [task.wait(240) for task in tasks] == [0, 0], "\n".join(log.read_text() for log in logs)
    finally:
        for task in tasks:
            task.kill()
    return [log.read_text() for log in logs]


def by_slurm_in_namespaces(words: list[str], folder: Path) -> list[str]:
    """Two nodes that share nothing of the network but a cable between them, as root on Linux can make them."""
    names, addresses = ("seqrec-test-0", "seqrec-test-1"), ("10.213.7.1", "10.213.7.2")
    script = f"ip link add veth0 netns {names[0]} type veth peer name veth0 netns {names[1]}\n"
    for name, address in zip(names, addresses, strict=True):
        inside = f"ip -n {name}"
        script = f"ip netns add {name}\n{script}{inside} addr add {address}/24 dev veth0\n"
        script += f"{inside} link set veth0 up\n{inside} link set lo up\n"
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    made = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=False)
    try:
        if made.returncode != 0:
            pytest.skip(f"network namespaces cannot be made here: {made.stderr}")
        tasks = [(task, own | {"GLOO_SOCKET_IFNAME": "veth0"}) for task, own in slurm_tasks(words, addresses)]
        return run_hosts(tasks, folder, [("ip", "netns", "exec", name) for name in names])
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


STARTS: dict[str, tuple[Callable[[list[str], Path], list[str]], int]] = {
    "torchrun": (by_torchrun, 1),
    "two agents": (by_two_agents, 2),
    "SLURM": (by_slurm, 2),
    "SLURM in namespaces": (by_slurm_in_namespaces, 2),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of one process, for each of the runs."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.chdir(folder)
        cluster_runs.main(str(folder), ranks=1, hosts=1)
    return torch.load(folder / "0.pt")


@pytest.mark.parametrize(
    "start",
    [pytest.param(name, marks=pytest.mark.slow) for name in STARTS],
)
def test_two_ranks_train_as_one_process_does_on_the_joined_batches(start: str, alone: dict[str, Any], tmp_path: Path):
    launch, hosts = STARTS[start]
    launch([str(JOB), str(tmp_path), "2", str(hosts)], tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, expected in alone.items():
        for found in (rank[name] for rank in ranks):
            assert found["metrics"] == expected["metrics"], name
            for key, weight in expected["weights"].items():
                torch.testing.assert_close(
                    counted(key, found["weights"][key]), counted(key, weight), rtol=1e-5, atol=1e-5, msg=key
                )
        first, second = (rank[name]["weights"] for rank in ranks)
        assert all(torch.equal(first[key], second[key]) for key in first), name
    stores = [tmp_path / f"host{number}" / "store" for number in range(hosts)]
    assert len({(store / "manifest.json").read_text() for store in stores}) == 1


@pytest.mark.slow
def test_two_ranks_with_a_compiled_encoder_train_as_one_plain_process_does(alone: dict[str, Any], tmp_path: Path):
    by_torchrun([str(JOB), str(tmp_path), "2", "1", "compiled"], tmp_path)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")["compiled"]["weights"]
        for key, weight in alone["MambaRec"]["weights"].items():
            torch.testing.assert_close(found[key], weight, rtol=1e-5, atol=1e-5, msg=key)


def counted(key: str, weight: torch.Tensor) -> torch.Tensor:
    """A weight without what no output depends on: the bias of attention's keys moves all scores of a query alike.

    Its gradient is rounding error, which Adam scales up to steps.
    """
    if not key.endswith("in_projection.bias"):
        return weight
    query, _, value = weight.chunk(3)
    return torch.cat([query, value])


@pytest.fixture(scope="module")
def command_line(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Words of a small `seqrec fit` that draws nothing, and the run of one process with them."""
    folder = tmp_path_factory.mktemp("fit")
    words = ["-m", "seqrec", "fit", "--config", str(folder / "job.yaml")]
    (folder / "job.yaml").write_text(f"""
recipe: false
data:
  source: {{class_path: Synthetic, init_args: {{num_users: 80, num_items: 60, mean_events: 25}}}}
  max_length: 40
  batch_size: 16
model:
  class_path: MambaRec
  init_args: {{d_model: 8, num_layers: 1, dropout: 0.0, loss: {{class_path: FullSoftmax}}}}
execution: {{activation_checkpointing: true}}
trainer:
  max_epochs: 2
  logger: {{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {{save_dir: {folder}, name: null}}}}
""")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["seqrec"])
        main(
            [
                *words[2:],
                "--config",
                str(CONFIGS / "trainer" / "cpu.yaml"),
                "--trainer.logger.init_args.version",
                "alone",
            ]
        )
    return words, folder / "alone"


@pytest.mark.parametrize(
    ("start", "config", "devices"),
    [("SLURM", "slurm", 1), pytest.param("torchrun", "ddp", 2, marks=pytest.mark.slow)],
)
def test_the_command_line_under_a_cluster_makes_the_run_of_one_process(
    start: str, config: str, devices: int, command_line: tuple[list[str], Path], tmp_path: Path
):
    (words, alone), (launch, hosts) = command_line, STARTS[start]
    job = ["--config", str(CONFIGS / "trainer" / f"{config}.yaml"), "--trainer.accelerator", "cpu"]
    job += ["--trainer.devices", str(devices), "--trainer.num_nodes", str(hosts), "--data.batch_size", "8"]
    printed = launch([*words, *job, "--trainer.logger.init_args.version", start], tmp_path)
    run = alone.with_name(start)
    assert sum(f"run folder: {run} " in text for text in printed) == 1
    metrics = [json.loads((folder / "test_metrics.json").read_text()) for folder in (alone, run)]
    assert metrics[0] == metrics[1]
    expected, found = (torch.load(folder / "checkpoints" / "last.ckpt")["state_dict"] for folder in (alone, run))
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, rtol=1e-5, atol=1e-5, msg=key)
