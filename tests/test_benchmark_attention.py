"""benchmarks/attention.py without a GPU: what it takes for exact, what its gate lets pass, and that it runs."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend

from seqpope.kernels import pope_attention, rope_attention

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
attention, contenders, report = map(
    importlib.import_module, ("attention", "attention_contenders", "attention_report")
)
CPU = torch.device("cpu")
CALLS = {"forward+backward/eager", "forward/eager"}


def with_gradients(inputs, dtype, backend):
    leaves = [x.detach().to(dtype).requires_grad_() for x in inputs[:4]]
    out = pope_attention(*leaves, backend=backend)
    return [out.detach(), *torch.autograd.grad(out, leaves, inputs.upstream.to(dtype))]


@pytest.mark.parametrize("rows", [7, 2048])
def test_exact_result_is_the_formula(rows):
    inputs = contenders.make_inputs(contenders.Shape(2, 3, 19, 6), CPU, torch.float32)
    exact = contenders.exact_attention(inputs, rows)
    for name, got, want in zip(
        contenders.NAMES, exact, with_gradients(inputs, torch.float64, "reference"), strict=True
    ):
        assert got.dtype == torch.float64
        assert contenders.relative_error(got, want) < 1e-8, name  # softplus of torch is linear beyond 20


def test_exact_decoding_is_the_formula():
    q, k, v = (torch.randn(1, 1, n, 6, generator=torch.Generator().manual_seed(n)) for n in (1, 19, 20))
    v, delta = v[:, :, :19], -torch.rand(1, 6)
    doubles = [x.double() for x in (q, k, v, delta)]
    want = pope_attention(*doubles, query_offset=18, backend="reference")[0, 0, 0]
    got = contenders.exact_decoding(q[0, 0, 0], k[0, 0], v[0, 0], delta[0], 18, chunk=8)
    assert contenders.relative_error(got, want) < 1e-8


def test_inputs_lie_as_a_model_has_them():
    inputs = contenders.make_inputs(contenders.Shape(2, 3, 5, 4), CPU, torch.bfloat16)
    assert inputs.q.stride() == inputs.k.stride() == inputs.v.stride() == (5 * 3 * 12, 4, 3 * 12, 1)
    assert all(x.is_leaf and x.requires_grad for x in inputs[:4])
    assert inputs.upstream.transpose(1, 2).is_contiguous()
    assert -2 * torch.pi <= inputs.delta.min()
    assert inputs.delta.max() <= 0


@pytest.mark.parametrize("name", ["cartesian-flash", "cartesian-math", "rope-flash"])
def test_contenders_compute_what_they_say(name):
    shape = contenders.Shape(2, 3, 21, 8)
    setting, inputs = contenders.Setting(shape, CPU, False), contenders.make_inputs(shape, CPU, torch.float32)
    measures = contenders.build_measures(setting)
    contender = measures[name] if name in measures else contenders.BUILDERS[name](setting)
    with contenders.held_to(contender.backend):
        got = contenders.call_of(name, contender, inputs, "forward+backward")()
    if name.startswith("rope"):
        plain = contenders.Contender(lambda q, k, v, _: rope_attention(q, k, v, backend="reference"))
        want = contenders.call_of(name, plain, inputs, "forward+backward")()
    else:
        want = with_gradients(inputs, torch.float32, "reference")
    assert max(map(contenders.relative_error, got, want)) < 1e-5


def kernel(change):
    """The formula in fp32, its output changed."""
    return contenders.Contender(lambda *inputs: change(pope_attention(*inputs, backend="reference"), *inputs))


@pytest.mark.parametrize(
    ("change", "passes"),
    [
        (lambda out, *_: out, True),
        (lambda out, *_: out * 1.001, False),
        (lambda out, *_: out * float("nan"), False),
        (lambda out, q, k, v, delta: out + delta[0, 0] * 1e-9 - delta[0, 0].detach() * 1e-9, True),
        (lambda out, q, k, v, delta: out + delta.sum() - delta.sum().detach(), False),  # ddelta alone is wrong
        (lambda out, q, k, v, delta: pope_attention(q, k, v, -delta, backend="reference"), False),
        (lambda out, q, k, v, delta: pope_attention(q, k, v, delta, causal=False, backend="reference"), False),
    ],
)
def test_gate(change, passes):
    shape = contenders.Shape(1, 2, 24, 8)
    setting = contenders.Setting(shape, CPU, False)
    inputs = contenders.make_inputs(shape, CPU, torch.float32)
    record = contenders.gate(kernel(change), contenders.build_measures(setting), inputs)
    assert record["passed"] is passes
    assert record["measure"] == "cartesian-flash"  # there is no cuDNN here
    assert (record["reason"] is None) is passes


def test_gate_without_a_measure_or_with_a_kernel_that_raises():
    inputs = contenders.make_inputs(contenders.Shape(1, 1, 8, 4), CPU, torch.float32)
    right = kernel(lambda out, *_: out)
    refusing = {"cartesian-cudnn": right._replace(backend=SDPBackend.CUDNN_ATTENTION, attend=None)}
    assert not contenders.gate(right, refusing, inputs)["passed"]
    raising = contenders.gate(right._replace(attend=None), {"formula": right}, inputs)
    assert not raising["passed"]
    assert "TypeError" in raising["reason"]


@pytest.mark.slow
def test_whole_run(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "attention.py"), "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--no-sweep", "--jobs", "2", "--commit", "abc"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "attention.json").read_text())
    tiny = result["shapes"]["tiny"]
    assert tiny["gate"]["passed"]
    assert set(tiny["times"]) == CALLS
    assert all(contenders.OURS in times and "rope-flash" in times for times in tiny["times"].values())
    assert max(tiny["difference"].values()) < 1e-4
    assert "cartesian-cudnn" in tiny["not_run"]
    assert "flex" in tiny["not_run"]
    assert result["ceilings"]["copy_gbs"] > 0
    assert contenders.OURS in result["decode"]["rows"][0]["times"]
    assert result["failed"] == {}
    assert result["provenance"]["commit"] == "abc"
    text = (tmp_path / "attention.md").read_text()
    assert "say nothing" in text
    assert "tiny 1,2,40,16" in text


@pytest.mark.slow
def test_workers_that_die_or_linger_stop_nothing():
    options = argparse.Namespace(device="cpu", commit=None, jobs=3, patience=60)
    common = {"device": "cpu", "quick": True, "patience": 60}
    jobs = [attention.Job("unknown", "nothing", **common), attention.Job("ceilings", "ceilings", **common)]
    ends = {job.name: message for job, message in attention.run_jobs(jobs, options)}
    assert ends["unknown"] == {"event": "failed", "reason": "KeyError: 'nothing'"}
    assert ends["ceilings"]["event"] == "done"
    options.patience = 0.2
    [(_, message)] = attention.run_jobs(jobs[1:], options)
    assert message["event"] == "failed"
    assert "no answer in time" in message["reason"]


def test_nothing_is_timed_while_others_warm_up_and_a_wrecked_gpu_is_retried(monkeypatch):
    said = []

    class FakeWorker:
        def __init__(self, job, environment):
            self.job, self.log, self.timing = job, argparse.Namespace(closed=False), False
            said.append(f"start {job.name}")

        def wait(self, seconds):
            if self.job.name == "b" and not self.job.without:
                return {"event": "poisoned", "contender": "flex", "reason": "illegal address"}
            if self.timing:
                return {"event": "done", "result": {}}
            said.append(f"ready {self.job.name}")
            return {"event": "ready"}

        def start_timing(self):
            self.timing = True
            said.append(f"time {self.job.name}")

        def end(self):
            self.log.closed = True
            said.append(f"end {self.job.name}")

    monkeypatch.setattr(attention, "Worker", FakeWorker)
    jobs = [attention.Job(name, "shape", "cpu", False, 9.0) for name in "abc"]
    done = list(attention.run_jobs(jobs, argparse.Namespace(device="cpu", commit=None, jobs=3, patience=9)))
    assert [(job.name, job.without) for job, _ in done] == [
        ("a", {}),
        ("c", {}),
        ("b", {"flex": "illegal address"}),
    ]
    first = ["start a", "start b", "start c", "ready a", "end b", "ready c", "time a", "end a", "time c", "end c"]
    assert said == [*first, "start b", "ready b", "time b", "end b"]


def timed(**times):
    return {
        name.replace("_", "-"): {"ms": ms, "spread": 0.0, "rounds_ms": [ms], "calls": 9}
        for name, ms in times.items()
    }


def test_report_judges_and_draws(tmp_path):
    failed = {"passed": False, "ours": None, "measure": None, "reason": "far"}
    gate = {"passed": True, "ours": {}, "cartesian": {}, "measure": "cartesian-cudnn", "reason": None}
    common = {"gate": gate, "not_run": {}, "memory": {}, "kernels": None, "difference": {"pope-pytorch": 0.5}}
    slow = timed(pope_triton=3.0, rope_flash=2.0, rope_cudnn=1.0, cartesian_cudnn=2.0)
    fast = timed(pope_triton=1.2, rope_flash=1.1, rope_cudnn=1.0, cartesian_cudnn=1.4, pope_pytorch=20.0)
    equal = timed(pope_triton=1.3, rope_flash=1.0, cartesian_cudnn=1.29)
    both = "forward+backward"
    result = {
        "device": "cuda", "command": "c", "ceilings": {"matmul_tflops": 800.0, "copy_gbs": 3000.0}, "failed": {},
        "decode": {}, "provenance": {"device": "GPU"},
        "shapes": {
            "JSB": common | {"shape": [1, 1, 8, 4], "times": {f"{both}/eager": slow, f"{both}/graph": fast}},
            "genome": common | {"shape": [1, 1, 8, 4], "times": {f"{both}/eager": slow, f"{both}/graph": fast}},
            "long": common | {"shape": [1, 1, 16384, 4], "times": {f"{both}/eager": equal}},
            "wide": common | {"shape": [1, 1, 8, 4], "times": {}, "gate": failed},
        },
        "sweep": {
            f"length {n}": common | {"shape": [1, 1, n, 4], "times": {f"{both}/graph": fast}} for n in (512, 1024)
        },
    }  # fmt: skip
    text = report.write(result, tmp_path)
    assert "cuDNN (at 16384: within 2%): JSB, long; not: genome." in text
    assert "At most 1.25 times RoPE (1.35 at 16384): JSB, long; not: genome." in text
    assert "| wide | not timed: far |" in text
    assert "20.000†" in text
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")
    assert attention.failures(result) == ["wide: gate"]
    unit = 16384 * 16385 / 2 * 2 * 4
    found = report.roofline([1, 1, 16384, 4], both, equal)
    assert found["ours"] == pytest.approx(11 * unit / 1.3e-3 / 1e12)
    assert found["rope"] == pytest.approx(7 * unit / 1e-3 / 1e12)
    assert found["floor_share"] == pytest.approx(11 / 7 / 1.3)
