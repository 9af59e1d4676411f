"""A contender of bench_inference.py: diffusers' pipeline with UNet and decoder in OpenVINO's hands.

Started as `ldm_toolkit.evaluation.contender` is; needs `pip install openvino`. A network is
converted from torch at its first call, for the shapes of that call, and computed in the precision
that ``dtype`` names; inputs and outputs are float32, as the text encoder is.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ldm_toolkit.evaluation.contender import Diffusers, main
from ldm_toolkit.evaluation.speed import Contender
from ldm_toolkit.fastpath.openvino import openvino

PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


class Traced(nn.Module):
    """A network of diffusers as a function from tensors to a tensor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        """The first of what the network gives."""
        found = type(self.network).forward(self.network, *inputs)  # the instance's is replaced
        return found if isinstance(found, Tensor) else found[0]


class Converted:
    """A network in OpenVINO, made at the first call, for its shapes alone."""

    def __init__(self, network: nn.Module, settings: Mapping[str, Any]) -> None:
        self._network, self._settings = network, dict(settings)
        self._compiled: Any = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """What the network makes of float32 tensors on the CPU."""
        if self._compiled is None:
            shapes = [list(one.shape) for one in inputs]
            with torch.no_grad():
                made = openvino().convert_model(
                    Traced(self._network), example_input=inputs, input=shapes
                )
            self._compiled = openvino().Core().compile_model(made, "CPU", self._settings)
        found = self._compiled([one.contiguous().numpy() for one in inputs])[0]
        return torch.from_numpy(found.copy())


class OpenVino(Diffusers):
    """diffusers' pipeline, whose UNet and decoder are computed elsewhere."""

    def __init__(self, asked: Contender) -> None:
        loading = dict(asked.loading)
        precision = PRECISIONS[loading.pop("dtype", "float32")]
        super().__init__(replace(asked, loading=loading))
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        networks = self._pipe.unet, self._pipe.vae.decoder
        predicted, decoded = (Converted(one, settings) for one in networks)

        def predict(sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **_: Any):
            return (predicted(sample, timestep.reshape(1).float(), encoder_hidden_states),)

        networks[0].forward = predict
        networks[1].forward = lambda latents, *_: decoded(latents)
        self.about |= {"openvino": openvino().__version__, "dtype": precision}


if __name__ == "__main__":
    main(sys.argv[1:], {"openvino": OpenVino})
