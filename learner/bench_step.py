"""What an optimizer step takes, beside the path that everyone starts with: `trustbatch bench learner`.

    padded                  every sequence padded to the longest, logits of every token, log_softmax, autograd
    packed                  the learner's own step, in one micro-batch
    packed, prompts apart   the same, where no two sequences share a prompt
    packed, in pieces       in several micro-batches: with the forward pass that knowing the whole step costs
    packed, checkpointed    in one, keeping the input of every layer only
    packed, bfloat16        in one, with matrix products in bfloat16

Every variant is a process of its own, one after the other, on the same groups and weights; each takes its best step of
so many rounds. Seconds are the processor's on a CPU and the clock's on CUDA. Memory is the step's peak above what
weights and optimizer hold already (resident set, or torch's own count on CUDA).

    MFU = (6 P tokens + 6 V d trained tokens + 6 layers heads head_dim sum of lengths^2) / seconds / matrix rate

P are the layers' weights; every sequence counts whole, whether its prompt is shared or not; the rate is that of a
product of two large matrices in the variant's precision, in the same process. Needs no Redis and downloads nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from learner.batch import StepBatch, batch_rewards, build_step
from learner.bench_meter import begin_peak, matrix_rate, peak, timed
from learner.bench_work import SHAPES, Work, padded_step
from learner.model import PolicyModel, choose_device, use_configured_threads
from learner.objective.registry import build
from learner.objectives import Objectives
from learner.step import take_step
from shared.config.learner import LearnerConfig

VARIANTS = (
    "padded",
    "packed",
    "packed, prompts apart",
    "packed, in pieces",
    "packed, checkpointed",
    "packed, bfloat16",
)
PIECES = 4  # micro-batches of "in pieces", at least
CONFIG = LearnerConfig(learning_rate=0.0)


def measure_one(work: Work, variant: str) -> dict[str, Any]:
    """One variant, in this process."""
    device = choose_device(work.device)  # type: ignore[arg-type]
    matrices = "bfloat16" if variant.endswith("bfloat16") else "float32"
    rate = matrix_rate(device, getattr(torch, matrices))
    module = work.model()
    weights = list(module.parameters())
    optimizer = torch.optim.AdamW(weights, lr=0.0, fused=True)
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()  # its state belongs to what is held already
    optimizer.zero_grad(set_to_none=True)
    step = (
        padded_step(work, module, optimizer)
        if variant == "padded"
        else _packed(work, variant, module, optimizer, matrices)
    )
    held = begin_peak(device)
    taken = [timed(step, device) for _ in range(work.rounds)]
    seconds, told = min(taken, key=lambda pair: pair[0])
    return {
        "seconds": seconds,
        "tokens_per_s": sum(work.lengths()) / seconds,
        "memory_bytes": peak(device) - held,
        "mfu": work.flops() / seconds / rate,
        "matrix_flops": rate,
        **told,
    }


def _packed(
    work: Work, variant: str, module: Any, optimizer: torch.optim.Optimizer, matrices: Any
) -> Callable[[], dict[str, Any]]:
    """The learner's own step."""
    policy = PolicyModel(module, matrices=matrices)
    if variant.endswith("checkpointed"):
        policy.checkpoint_activations()
    groups = work.groups(apart=variant.endswith("apart"))
    rewards, tokens = batch_rewards(groups), sum(work.lengths())
    budget = max(work.longest, tokens // PIECES) if variant.endswith("pieces") else tokens
    batch: StepBatch = build_step(groups, rewards, "group_std", budget)
    objectives = Objectives(build("p3o"))

    def step() -> dict[str, Any]:
        outcome = take_step(policy, optimizer, batch, objectives, CONFIG, 1)
        if outcome.skipped:
            raise RuntimeError(f"the step was skipped for a {outcome.skipped}: nothing was measured")
        return {
            "micro_batches": len(batch.micro_batches),
            "packing_efficiency": batch.packing_efficiency,
            "prepass_share": outcome.prepass_s / outcome.seconds,
        }

    return step


def measure(work: Work, variants: Sequence[str]) -> dict[str, Any]:
    """Every variant in a process of its own."""
    found = {}
    for variant in variants:
        command = [sys.executable, "-m", "learner.bench_step", json.dumps([asdict(work), variant])]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        found[variant] = json.loads(done.stdout.splitlines()[-1])
    lengths = work.lengths()
    device = choose_device(work.device)  # type: ignore[arg-type]
    return {
        **asdict(work),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "tokens": sum(lengths),
        "trained_tokens": sum(lengths) - work.sequences * work.prompt,
        "filled": sum(lengths) / (work.sequences * work.longest),
        "variants": found,
    }


def table(told: dict[str, Any]) -> str:
    """For people."""
    head = f"{'':24}{'tokens/s':>10}{'':>8}{'seconds':>9}{'memory':>10}{'':>8}{'MFU':>6}{'packed':>8}{'pre-pass':>10}"
    rows = told["variants"]
    first = rows.get("padded")
    lines = [
        f"{told['shape']}, V {told['vocabulary']:,}, {told['sequences']} sequences of {told['shortest']} to "
        f"{told['longest']} tokens ({told['tokens']:,}, {told['filled']:.0%} of the padded area), prompts of "
        f"{told['prompt']}; {told['device']}, {told['threads']} thread(s), torch {told['torch']}",
        head,
    ]
    for name, row in rows.items():
        speed = f"{row['tokens_per_s'] / first['tokens_per_s']:.2f} x" if first else ""
        memory = f"1/{first['memory_bytes'] / row['memory_bytes']:.1f}" if first else ""
        lines.append(
            f"{name:24}{row['tokens_per_s']:10,.0f}{speed:>8}{row['seconds']:9.2f}"
            f"{row['memory_bytes'] / 1e6:7,.0f} MB{memory:>8}{row['mfu']:6.0%}{row['packing_efficiency']:8.0%}"
            f"{row['prepass_share']:10.0%}"
        )
    rates = {round(row["matrix_flops"] / 1e9) for name, row in rows.items() if not name.endswith("bfloat16")}
    lines.append(f"matrix rate {min(rates):,} to {max(rates):,} GFLOP/s")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="trustbatch bench learner", description="What an optimizer step takes.")
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the model, whose weights are random")
    parser.add_argument("--vocabulary", type=int, default=32_768, metavar="V")
    parser.add_argument("--sequences", type=int, default=16, metavar="N")
    parser.add_argument("--group-size", type=int, default=8, metavar="N")
    parser.add_argument("--prompt", type=int, default=32, metavar="TOKENS", help="of a group, part of every sequence")
    parser.add_argument("--shortest", type=int, default=64, metavar="TOKENS")
    parser.add_argument("--longest", type=int, default=1024, metavar="TOKENS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=2, help="steps of each variant, of which the best counts")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="only these; may be repeated")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument(
        "--overhead", action="store_true", help="instead: what the learner does beside the model's work"
    )
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    options = vars(parser.parse_args(arguments))
    as_json, overhead, variants = options.pop("json"), options.pop("overhead"), options.pop("variant") or VARIANTS
    use_configured_threads()
    work = Work(**options)
    if not work.prompt < work.shortest <= work.longest or min(work.sequences, work.group_size, work.rounds) < 1:
        parser.error("prompt < shortest <= longest, and at least one sequence, one in a group and one round, please")
    if overhead:
        from learner import bench_overhead

        told, lines = bench_overhead.measure(), bench_overhead.table
    else:
        told, lines = measure(work, variants), table
    sys.stdout.write((json.dumps(told, indent=2) if as_json else lines(told)) + "\n")


if __name__ == "__main__":
    given, chosen = json.loads(sys.argv[1])
    use_configured_threads()
    sys.stdout.write(json.dumps(measure_one(Work(**given), chosen)) + "\n")
