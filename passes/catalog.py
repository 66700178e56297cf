"""Every pass there is."""

from dit_compile.passes.block_cache.insert_block_cache import InsertBlockCache
from dit_compile.passes.cleanup.eliminate_common import EliminateCommon
from dit_compile.passes.cleanup.eliminate_dead import EliminateDead
from dit_compile.passes.cleanup.remove_noops import RemoveNoops
from dit_compile.passes.fusion.fuse_adaln import FuseAdaLN
from dit_compile.passes.fusion.fuse_attention import FuseAttention
from dit_compile.passes.fusion.fuse_gated_residual import FuseGatedResidual
from dit_compile.passes.fusion.fuse_norm_rotary import FuseNormRotary
from dit_compile.passes.fusion.fuse_qkv import FuseQKV
from dit_compile.passes.hoist.fold_weights import FoldWeights
from dit_compile.passes.hoist.hoist_invariant import HoistInvariant
from dit_compile.passes.hoist.hoist_timestep import HoistTimestep
from dit_compile.passes.lower.pack_keys import PackKeys
from dit_compile.passes.lower.pack_weights import PackWeights
from dit_compile.passes.lower.select_attention import SelectAttention
from dit_compile.passes.lower.widen_products import WidenProducts

ALL = (
    RemoveNoops,
    EliminateCommon,
    EliminateDead,
    FuseQKV,
    FuseAttention,
    FuseAdaLN,
    FuseGatedResidual,
    FuseNormRotary,
    FoldWeights,
    HoistInvariant,
    HoistTimestep,
    InsertBlockCache,
    WidenProducts,
    PackWeights,
    SelectAttention,
    PackKeys,
)
