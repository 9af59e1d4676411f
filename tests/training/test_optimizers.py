"""Optimisers by name: made, refused where they would not resume, and resumed bit for bit.

The packages of ``ldm-toolkit[optimizers]`` are tried where they are installed. Doubles with the
same kinds of state (numbers in groups, dictionaries, shared tables, averages) stand in for them.
"""

import json
import sys
from types import ModuleType

import pytest
import torch
from training_tools import Line, line_config, metric

from ldm_toolkit.errors import UserError
from ldm_toolkit.training import checkpoints, loop, optimizers
from ldm_toolkit.training.config import LoopConfig

CPU = torch.device("cpu")
PLACES = {
    "adamw-8bit": ("bitsandbytes.optim", "AdamW8bit"),
    "adamw-8bit-ao": ("torchao.optim", "AdamW8bit"),
    "adamw-4bit": ("torchao.optim", "AdamW4bit"),
    "prodigy": ("prodigyopt", "Prodigy"),
    "schedule-free": ("schedulefree", "AdamWScheduleFree"),
}
OPTIONS = {
    "adamw": {},
    "adamw-8bit": {},
    "adamw-8bit-ao": {},
    "adamw-4bit": {},
    "prodigy": {"lr": 1.0},
    "schedule-free": {"ema": 0.0, "lr_schedule": "constant"},
}


class NumbersInGroups(torch.optim.Optimizer):
    """Like Prodigy: an estimate in the group, an int in the state, words on stdout."""

    def __init__(self, params, lr, weight_decay=0.0, **settings):
        print("a greeting")
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "d": 0.1, **settings})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["step"] = state.get("step", 0) + 1
                group["d"] = group["d"] * 0.9 + 0.01 * float(parameter.grad.abs().mean())
                rate = group["lr"] * group["d"] / state["step"]
                parameter.sub_(rate * parameter.grad / parameter.grad.norm())
            group["seen"] = group.get("seen", 0) + 1


class Nested(torch.optim.Optimizer):
    """Like bitsandbytes: bytes in a dictionary of their own, one table for all parameters."""

    def __init__(self, params, lr, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99)})
        self._table = torch.linspace(-1, 1, 256)

    def state_dict(self):
        whole = super().state_dict()
        whole["state"] = {
            index: {"step": values["step"], "hidden": {n: values[n] for n in ("codes", "table")}}
            for index, values in whole["state"].items()
        }
        return whole

    def load_state_dict(self, state_dict):
        flat = {}
        for index, values in state_dict["state"].items():
            flat[index] = {"step": values["step"], **values.get("hidden", {})}
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.state.update({parameters[index]: dict(values) for index, values in flat.items()})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    codes = torch.full(parameter.shape, 128, dtype=torch.uint8)
                    state.update(step=0, codes=codes, table=self._table)
                state["step"] += 1
                mean = 0.9 * state["table"][state["codes"].long()] + 0.1 * parameter.grad.sign()
                state["codes"] = ((mean + 1) / 2 * 255).round().clamp(0, 255).to(torch.uint8)
                parameter.sub_(group["lr"] / state["step"] * mean)


class Averaging(torch.optim.Optimizer):
    """Like schedule-free: two modes, in which the parameters are other numbers."""

    def __init__(self, params, lr, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "k": 0, "train_mode": False})

    @torch.no_grad()
    def _turn(self, weight):
        for group in self.param_groups:
            for parameter in group["params"]:
                if "z" in self.state[parameter]:
                    parameter.lerp_(self.state[parameter]["z"], weight)
            group["train_mode"] = not group["train_mode"]

    def train(self):
        if not self.param_groups[0]["train_mode"]:
            self._turn(1 - 0.9)

    def eval(self):
        if self.param_groups[0]["train_mode"]:
            self._turn(1 - 1 / 0.9)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            if not group["train_mode"]:
                raise ValueError("not in train mode")
            group["k"] += 1
            for parameter in group["params"]:
                z = self.state[parameter].setdefault("z", parameter.clone())
                slope = parameter.grad / (1 + parameter.grad.abs())
                parameter.lerp_(z, 1 / group["k"])
                parameter.sub_(slope, alpha=group["lr"] * 0.5)
                z.sub_(slope, alpha=group["lr"])


class Halves(torch.Tensor):
    """Like torchao's quantised moments: a tensor only in name, around two others."""

    @staticmethod
    def __new__(cls, high, low, signed):
        return torch.Tensor._make_wrapper_subclass(cls, high.shape, dtype=torch.float32)

    def __init__(self, high, low, signed):
        self.high, self.low, self.signed = high, low, signed

    def __tensor_flatten__(self):
        return ["high", "low"], [self.signed]

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        raise NotImplementedError(f"{function} needs a number")


class LowBit(torch.optim.Optimizer):
    """Like torchao's: moments that are no plain tensors, a rate that is one and stays in place."""

    def __init__(self, params, lr, weight_decay=0.0):
        super().__init__(params, {"lr": lr})
        for group in self.param_groups:
            group["lr"] = torch.tensor(group["lr"])

    def _new_buffer(self, parameter, signed):
        return Halves(*torch.zeros(2, *parameter.shape).bfloat16(), signed)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            if not isinstance(group["lr"], torch.Tensor):
                raise RuntimeError("lr was changed to a non-Tensor object")
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = self._new_buffer(parameter, True)
                    state["exp_avg_sq"] = self._new_buffer(parameter, False)
                state["step"] += 1
                slopes = {"exp_avg": parameter.grad, "exp_avg_sq": parameter.grad.square()}
                for name, slope in slopes.items():
                    kept = state[name]
                    if kept.signed != (name == "exp_avg"):
                        raise RuntimeError("signs are mixed up")
                    value = 0.9 * (kept.high.float() + kept.low.float()) + 0.1 * slope
                    kept.high = value.bfloat16()
                    kept.low = (value - kept.high.float()).bfloat16()
                root = state["exp_avg_sq"].high.float().sqrt() + 1e-8
                parameter.sub_(group["lr"] * state["exp_avg"].high.float() / root)


DOUBLES = {
    "adamw-8bit": Nested,
    "adamw-8bit-ao": LowBit,
    "adamw-4bit": LowBit,
    "prodigy": NumbersInGroups,
    "schedule-free": Averaging,
}


@pytest.fixture
def install(monkeypatch):
    """Puts a class where the optimiser of a name is looked for; None takes the package away."""

    def put(name, kind):
        place, attribute = PLACES[name]
        module = None
        if kind is not None:
            module = ModuleType(place)
            setattr(module, attribute, kind)
        monkeypatch.setitem(sys.modules, place, module)

    return put


def options(name, output="o"):
    return LoopConfig(output=str(output), optimizer=name, **OPTIONS[name])


def test_the_default_is_torchs_fused_adamw():
    parameters = [torch.nn.Parameter(torch.ones(3))]
    made = optimizers.create(LoopConfig(output="o", lr=2e-3, weight_decay=0.2), parameters)
    assert type(made) is torch.optim.AdamW
    group = made.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["fused"]) == (2e-3, 0.2, True)
    parameters[0].grad = torch.ones(3)
    made.step()
    assert checkpoints.optimizer_scalars(made) == {}
    optimizers.check(LoopConfig(output="o"), CPU)


@pytest.mark.parametrize("name", PLACES)
def test_a_missing_package_is_named(name, install):
    install(name, None)
    package = PLACES[name][0].partition(".")[0]
    with pytest.raises(UserError, match=rf"--optimizer {name} needs .* {package} .*pip install"):
        optimizers.check(options(name), CPU)


@pytest.mark.parametrize("name", PLACES)
def test_a_package_without_the_class_is_named(name, install, monkeypatch):
    install(name, torch.optim.SGD)
    monkeypatch.delattr(sys.modules[PLACES[name][0]], PLACES[name][1])
    with pytest.raises(UserError, match=rf"--optimizer {name} needs {PLACES[name][1]}"):
        optimizers.create(options(name), [torch.nn.Parameter(torch.ones(1))])


def straight_and_resumed(name, accelerator, tmp_path):
    """The weights after 9 steps at once, and after 2, 5 and 9 with a resume between them."""
    results = []
    settings = {"lr_schedule": "constant", "warmup": 0, "lr": 0.05, **OPTIONS[name]}
    for folder, stops in (("whole", [9]), ("parts", [2, 5, 9])):
        for steps in stops:
            method = Line()
            config = line_config(tmp_path / folder, optimizer=name, steps=steps, **settings)
            loop.train(method, config, accelerator)
        results.append({n: p.detach() for n, p in method.module.named_parameters()})
    assert metric(tmp_path / "parts", "loss") == metric(tmp_path / "whole", "loss")
    return results


@pytest.mark.parametrize("name", DOUBLES)
def test_every_kind_of_state_resumes_bit_for_bit(name, accelerator, install, capsys, tmp_path):
    install(name, DOUBLES[name])
    optimizers.check(options(name), CPU)
    whole, parts = straight_and_resumed(name, accelerator, tmp_path)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert any(not torch.equal(value, torch.full_like(value, 0.5)) for value in whole.values())
    assert capsys.readouterr().out == ""  # stdout is data
    newest = tmp_path / "parts" / "checkpoints" / "step-00000009"
    assert {path.suffix for path in newest.iterdir()} == {".json", ".safetensors"}
    state = json.loads((newest / "state.json").read_text())
    assert "optimizer" in state or DOUBLES[name] is LowBit  # whose state is tensors alone


@pytest.mark.parametrize("name", PLACES)
def test_the_real_one_resumes_bit_for_bit(name, accelerator, tmp_path):
    """Those of few bits quantise nothing as small as this; the probe has a parameter for that."""
    pytest.importorskip(PLACES[name][0].partition(".")[0])
    try:
        optimizers.check(options(name), CPU)
    except UserError as error:
        pytest.skip(f"not on a CPU: {error}")
    whole, parts = straight_and_resumed(name, accelerator, tmp_path)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_groups_restore_what_the_optimiser_made_and_leave_what_was_asked():
    def fresh(lr):
        parameter = torch.nn.Parameter(torch.ones(4))
        parameter.grad = torch.full((4,), 2.0)  # of 1, its d would stay what was asked
        return NumbersInGroups([parameter], lr=lr)

    first = fresh(0.5)
    first.step()
    scalars = checkpoints.optimizer_scalars(first)
    assert scalars.keys() == {"0.step", "groups.0.d", "groups.0.seen"}
    second = fresh(0.25)
    checkpoints.restore_optimizer(second, {}, scalars)
    group = second.param_groups[0]
    assert (group["lr"], group["d"], group["seen"]) == (0.25, first.param_groups[0]["d"], 1)
    assert checkpoints.optimizer_scalars(second) == scalars


class Forgetful(torch.optim.SGD):
    """Remembers outside of its state."""

    def __init__(self, params, lr, weight_decay=0.0, **settings):
        super().__init__(params, lr=lr)
        self._count = 0

    def step(self, closure=None):
        self._count += 1
        self.param_groups[0]["lr"] = 0.1 / self._count
        super().step()


class Strange(torch.optim.SGD):
    """Has a state that is neither numbers nor tensors."""

    def __init__(self, params, lr, weight_decay=0.0, **settings):
        super().__init__(params, lr=lr)

    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["rng"] = torch.Generator()
        super().step()


class Broken(torch.optim.SGD):
    """Does not run on this device."""

    def __init__(self, params, lr, weight_decay=0.0, **settings):
        super().__init__(params, lr=lr)

    def step(self, closure=None):
        raise NotImplementedError("no kernel for cpu\nand a second line")


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Forgetful, "does not go on from its saved state"),
        (Strange, "its state cannot be saved"),
        (Broken, r"does not run on cpu.*no kernel for cpu\)"),
    ],
)
def test_what_would_not_resume_is_refused_at_the_start(kind, told, install):
    install("prodigy", kind)
    with pytest.raises(UserError, match=told) as caught:
        optimizers.check(options("prodigy"), CPU)
    assert "--optimizer prodigy" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_average_is_what_is_saved_and_looking_changes_nothing(accelerator, install, tmp_path):
    install("schedule-free", Averaging)
    settings = {"optimizer": "schedule-free", **OPTIONS["schedule-free"]}
    seen, method = [], Line()
    config = line_config(tmp_path / "looked", sample_every=1, **settings)
    loop.train(
        method,
        config,
        accelerator,
        sample=lambda step: seen.append(method.module.weight.detach().clone()),
    )
    plain = Line()
    loop.train(plain, line_config(tmp_path / "plain", **settings), accelerator)
    assert torch.equal(method.module.weight, plain.module.weight)
    assert len(seen) == 13
    assert not torch.equal(seen[-1], method.module.weight)
    for folder in ("looked", "plain"):
        assert torch.equal(torch.load(tmp_path / folder / "line.pt")["weight"], seen[-1])


def test_another_optimiser_is_refused_at_a_resume(accelerator, install, tmp_path):
    install("prodigy", NumbersInGroups)
    loop.train(Line(), line_config(tmp_path, lr=0.05), accelerator)
    with pytest.raises(UserError, match=r"--optimizer adamw \(now prodigy\)"):
        loop.train(Line(), line_config(tmp_path, lr=0.05, optimizer="prodigy"), accelerator)
