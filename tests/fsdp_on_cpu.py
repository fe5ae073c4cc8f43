"""`lep` as under `accelerate launch --use_fsdp`, on CPUs; accelerate itself shards on GPUs only."""

from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, DistributedType

from lep.cli import main

start = AcceleratorState.__init__


def start_with_fsdp(self, *arguments, **options) -> None:
    start(self, *arguments, **options)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.FSDP
        # A second state takes the plugin of the first one.
        if getattr(self, "fsdp_plugin", None) is None:
            self.fsdp_plugin = options.get("fsdp_plugin") or FullyShardedDataParallelPlugin()
            if self.mixed_precision != "no":
                self.fsdp_plugin.set_mixed_precision(self.mixed_precision)


AcceleratorState.__init__ = start_with_fsdp

if __name__ == "__main__":
    main()
