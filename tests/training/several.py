"""A tiny UNet trained by several processes: torchrun ... several.py KIND OUTPUT NAME=VALUE ...

``KIND`` is ddp, fsdp or zero. Accelerate (1.15) leaves FSDP and DeepSpeed out on CPUs, where they
run themselves, so its state is set here as it sets it on GPUs.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from training_tools import lora_method, unet_method

from ldm_toolkit.training import loop
from ldm_toolkit.training.zero import check_zero


def main(kind: str, output: Path, *words: str) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    if kind == "fsdp":
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["BasicTransformerBlock", "ResnetBlock2D"],
            cpu_ram_efficient_loading=False,
        )  # fmt: skip
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
    options = {name: json.loads(value) for name, _, value in (w.partition("=") for w in words)}
    make = lora_method if options.pop("method", "full") == "lora" else unet_method
    method, config = make(output, **options)
    if kind == "zero":
        PartialState().distributed_type = DistributedType.DEEPSPEED
        accelerator.state.distributed_type = DistributedType.DEEPSPEED
        accelerator.state.deepspeed_plugins = DeepSpeedPlugin(zero_stage=2)
        accelerator.deepspeed_engine_wrapped = None
        check_zero(config, accelerator)
    drawn = []
    loop.train(method, config, accelerator, sample=drawn.append)
    divided = sum(hasattr(p, "full_tensor") for p in method.trainable().parameters())
    if accelerator.is_main_process:
        (output / "seen.json").write_text(json.dumps({"divided": divided, "drawn": drawn}))
    accelerator.wait_for_everyone()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
